"""Distillation: what a backbone learns from the embeddings of a trained model, its teacher.

With unit vectors s of the student and t of the teacher, an image adds two losses to that of the
classifier, each with a weight of the config's section `teacher`:

    cosine     1 - s·t
    centers    the margin loss of s and the class centers w of the teacher

The centers are those of AdaDistill (arXiv 2407.01332), moving averages of the teacher's vectors:

    w <- α w + (1 - α) t,    α = max(0, s·t) · max(0, cos(w, t))

While the student is far from the teacher, α is small and a center is the teacher's vector of the
latest image; later it becomes a mean of its class, to which an unusual image adds more. The
published code keeps one of several images of a class in a batch. Here each of n images moves the
center by an n-th of its step, so the order of the images and the number of ranks do not matter.

A student's embedding of another length than the teacher's is compared after a linear map, which is
trained with the backbone. It is no part of the model.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.types import Batch, Int64
from recognition.backbones import embedding_of
from recognition.classifiers import Classifier, refuse_teacher_centers
from recognition.classifiers._margin_softmax import (
    SoftmaxOptions,
    gather_batch,
    margin_loss,
)
from recognition.classifiers._rows import initial_centers
from recognition.config import Config, TeacherConfig
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead
from recognition.seeds import generator

Vectors = Callable[[torch.Tensor, Int64 | None], torch.Tensor]
"""(images as the network gets them (B,3,S,S), their numbers (B,)) -> the teacher's embeddings
(B,D) on the device of the images, of any length; a row of zeros where there is none."""
CENTERS_SEED, MAP_SEED = 0x7EAC, 0x7EAD  # apart from the seeds of other random numbers


class TeacherCenters:
    """The class centers of the teacher that this rank holds, and the margin loss with them.

    rows: their classes. A skipped step is taken back by `after_step`.
    """

    def __init__(
        self,
        rows: range,
        width: int,
        *,
        options: SoftmaxOptions,
        ranks: Ranks,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rows, self.options, self.ranks = rows, options, ranks
        # The last row takes what the images of other ranks' classes would write.
        table = [initial_centers(rows, width, seed=seed), torch.zeros(1, width)]
        self._table = torch.cat(table).to(device)
        self._moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sample: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The centers (C_local, D), on the device of the run."""
        return self._table[:-1]

    def loss(
        self,
        embeddings: torch.Tensor,
        given: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None,
    ) -> torch.Tensor:
        """Move the centers of the batch's classes, and return the mean margin loss with them.

        embeddings (B,D), given (B,D) the teacher's vectors of length 1, labels (B,): of all ranks.
        sample: the classes that take part in this optimizer step, where a classifier draws some.
        """
        held = (labels >= self.rows.start) & (labels < self.rows.stop)
        local = labels - self.rows.start
        self._move(F.normalize(embeddings.detach()), given, labels, held)
        if sample is not None:
            self._sample = sample
        if self._sample is None:
            weight, places = self.weight, local
        else:
            weight = self._table[self._sample - self.rows.start]
            places = torch.searchsorted(self._sample, labels)
        return margin_loss(
            embeddings,
            weight,
            torch.where(held, places, -1),
            options=self.options,
            ranks=self.ranks,
            training=True,
        )

    @torch.no_grad()
    def _move(
        self, units: torch.Tensor, given: torch.Tensor, labels: torch.Tensor, held: torch.Tensor
    ) -> None:
        """Move the centers of the labels that this rank holds (held (B,)) towards the teacher."""
        places = torch.where(held, labels - self.rows.start, len(self.rows))
        before = self._table[places]
        nearness = (F.normalize(before) * given).sum(1).clamp(min=0)
        alpha = (units * given).sum(1).clamp(min=0) * nearness

        # An image without a vector moves nothing, and neither do those of other ranks' classes.
        moves = held & given.any(1)
        steps = torch.where(moves[:, None], (1 - alpha)[:, None] * (given - before), 0.0)
        same = labels[:, None] == labels
        counts = (same & moves).sum(1).clamp(min=1)
        after = before + same.to(steps.dtype) @ (steps / counts[:, None])

        # All images of a class write what the first of them has, so their order does not matter.
        first = same.to(torch.uint8).argmax(1)
        self._table[places] = after[first]
        self._moved.append((places, before))

    def after_step(self, taken: torch.Tensor) -> None:
        """Take the moves back if the step was skipped (taken: bool, scalar)."""
        for places, before in reversed(self._moved):
            self._table[places] = torch.where(taken, self._table[places], before)
        self._moved, self._sample = [], None


class Teacher:
    """The losses of a run's teacher.

    digest: what tells its vectors from those of another teacher; checkpoints hold it. projection:
    the linear map from the student's embedding to the teacher's, None where they are of one length.
    planned: images of the whole run, for the schedule of the weights.
    """

    def __init__(
        self,
        config: TeacherConfig,
        vectors: Vectors,
        *,
        digest: str,
        projection: nn.Linear | None,
        centers: TeacherCenters | None,
        ranks: Ranks,
        planned: int,
    ) -> None:
        self.config, self.vectors, self.digest, self.ranks = config, vectors, digest, ranks
        self.projection, self.centers, self.planned = projection, centers, planned
        self._weight = 1.0
        self._cosine: torch.Tensor | None = None

    def loss(
        self,
        classifier: Classifier,
        forward: Callable[..., torch.Tensor],
        images: torch.Tensor,
        batch: Batch,
        place: int,
    ) -> torch.Tensor:
        """Mean loss of the global batch, with the classifier's own; it calls `forward` once.

        place: images of the run up to the end of this step.
        """
        # Before the forward pass, because no activation of the student's exists yet.
        with torch.autocast(images.device.type, enabled=False):
            given = self.vectors(images, batch.indices)

        seen: list[torch.Tensor] = []

        def recorded(inputs: torch.Tensor) -> torch.Tensor:
            seen.append(forward(inputs))
            return seen[-1]

        own: torch.Tensor | float = 0.0
        if self.config.classifier:
            own = classifier(recorded, images, batch.labels, batch.sample)
        else:
            recorded(images)
        (embeddings,) = seen
        with torch.autocast(images.device.type, enabled=False):
            self._weight = fading(place / self.planned) if self.config.schedule == "fade" else 1.0
            taught = self._taught(embeddings, given, batch.labels, batch.sample)
            return own + self._weight * taught

    def _taught(
        self,
        embeddings: torch.Tensor,
        given: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None,
    ) -> torch.Tensor:
        """The teacher's part of the loss, without its place in the schedule.

        A class pool without `swap` shows the backbone only the first of its images.
        """
        count, dtype = len(embeddings), torch.promote_types(embeddings.dtype, torch.float32)
        embeddings, labels = gather_batch(embeddings, labels[:count], self.ranks, dtype=dtype)
        given = F.normalize(self.ranks.all_gather(given[:count]).to(dtype))
        if self.projection is not None:
            embeddings = self.projection(embeddings)
        cosine = (F.normalize(embeddings) * given).sum(1)
        self._cosine = cosine.detach().mean()
        total = self.config.cosine * ((1 - cosine) * given.any(1)).mean()
        if self.centers is not None:
            loss = self.centers.loss(embeddings, given, labels, sample)
            total = total + self.config.centers * loss
        return total

    def after_step(self, taken: torch.Tensor) -> None:
        """Called after each optimizer step, as `Classifier.after_step`."""
        if self.centers is not None:
            self.centers.after_step(taken)

    def statistics(self) -> list[torch.Tensor]:
        """Buffers that a loss changes, which a skipped step gives back."""
        return [] if self.centers is None else list(self.centers.options.head.buffers())

    def parameters(self) -> list[nn.Parameter]:
        """What the run's optimizer trains for the teacher's sake: the weight of the linear map."""
        return [] if self.projection is None else list(self.projection.parameters())

    def log(self) -> dict[str, float]:
        """Mean cosine between student and teacher in the last batch, and the schedule's factor."""
        cosine = float("nan") if self._cosine is None else self._cosine.item()
        return {"teacher/cosine": cosine, "teacher/weight": self._weight}

    def state_dict(self) -> dict[str, Any]:
        """Projection, centers of this rank, and the state of their head."""
        state: dict[str, Any] = {}
        if self.projection is not None:
            state["projection"] = self.projection.state_dict()
        if self.centers is not None:
            head = self.centers.options.head.state_dict()
            state |= {"centers": self.centers.weight, "head": head}
        return state

    def load_state_dict(self, saved: list[dict[str, Any]], *, whole: bool) -> None:
        """Load what `state_dict` of this rank gave, or of all ranks that saved.

        whole: `saved` has the states of all ranks, whose centers are divided anew.
        """
        if self.projection is not None:
            self.projection.load_state_dict(saved[0]["projection"])
        if self.centers is not None:
            rows = torch.cat([state["centers"] for state in saved])
            own = rows[self.centers.rows.start : self.centers.rows.stop] if whole else rows
            if own.shape != self.centers.weight.shape:
                raise ValueError(f"teacher: {len(rows)} class centers were saved")
            self.centers.weight.copy_(own)
            self.centers.options.head.load_state_dict(saved[0]["head"])


def fading(share: float) -> float:
    """The factor of `teacher.schedule: fade` when a share of the run is over: 1, then down to 0."""
    return min(1.0, max(0.0, 3 * (1 - share)))


def build_teacher(
    config: Config,
    vectors: Vectors,
    *,
    width: int,
    digest: str,
    backbone: nn.Module,
    classifier: Classifier,
    head: MarginHead,
    ranks: Ranks,
    device: torch.device,
    planned: int,
) -> Teacher:
    """The teacher of a run, on `device`. It leaves torch's random numbers as they are.

    width: numbers per embedding of the teacher. head: one of its own, with a state of its own.
    Raises ValueError for a classifier without class centers, if they are asked for.
    """
    embedding, seed, teacher = embedding_of(backbone), config.run.seed, config.teacher
    projection = None
    if embedding != width:
        projection = nn.utils.skip_init(nn.Linear, embedding, width, bias=False)
        with torch.no_grad():
            draw = generator(seed, MAP_SEED)
            projection.weight.normal_(0, embedding**-0.5, generator=draw)
        projection = projection.to(device)
    if not classifier.row_state:
        refuse_teacher_centers(config)
    centers = None
    if teacher.centers:
        own: SoftmaxOptions = vars(classifier)["options"]
        options = replace(own, head=head.to(device), sub_centers=1, filter_above=0.0)
        draw_seed = seed + CENTERS_SEED
        centers = TeacherCenters(
            classifier.rows, width, options=options, ranks=ranks, seed=draw_seed, device=device
        )
    return Teacher(
        teacher,
        vectors,
        digest=digest,
        projection=projection,
        centers=centers,
        ranks=ranks,
        planned=planned,
    )
