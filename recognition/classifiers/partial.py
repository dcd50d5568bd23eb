"""Partial FC (arXiv 2203.15565): each softmax has the batch's classes and some random others.

Only the sampled centers get gradient, momentum and weight decay. (With the dense gradient of the
released code the others decay and drift as well.) At sample_rate 1 this is the full classifier
trained by torch.optim.SGD or AdamW.

An optimizer step has one sample (_sample.py), which holds the classes of all its images. It depends
neither on the number of ranks nor on how the images are divided into micro-batches.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from data.loader import Loader
from data.options import Count, Range, Share
from data.types import FaceSet
from recognition.backbones import embedding_of
from recognition.classifiers import (
    ClassifierFacts,
    Memory,
    Overrides,
    Sizes,
    Work,
    ordinary_loader,
)
from recognition.classifiers._margin_softmax import (
    Chunk,
    SoftmaxOptions,
    chunk_memory,
    gather_batch,
    margin_loss,
    softmax_options,
)
from recognition.classifiers._matmul import DTYPES, FloatName, MatmulName
from recognition.classifiers._row_optimizers import adamw_step, check_own_step, sgd_step
from recognition.classifiers._rows import initial_centers, shard
from recognition.classifiers._sample import ClassSampler
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead

SampleRate = Annotated[float, Range(above=0, at_most=1)]


@dataclass
class _Chosen:
    """The centers that take part in one optimizer step.

    classes (n,): their classes. index: their rows in the weight. centers: the copy of those rows
    that gets the gradient. loss_factor: what the trainer multiplied each loss by; known after the
    backward pass.
    """

    classes: torch.Tensor
    index: torch.Tensor
    centers: torch.Tensor
    loss_factor: torch.Tensor | None = None

    def note_loss_factor(self, gradient: torch.Tensor) -> None:
        """A hook on the loss, whose own gradient is the factor that the trainer put on it.

        A trainer multiplies a loss by the loss scale and divides it by the micro-batches per step.
        The factor stays on the device: asking for the loss scale would wait for the GPU.
        """
        self.loss_factor = gradient.detach()


class PartialFC(nn.Module):
    """(backbone, images, labels) -> mean loss of the global batch.

    `weight` and `velocity` are buffers (C_local * K, D), K sub-centers per class. `after_step`
    updates the sampled centers by SGD or AdamW; the run's optimizer does not see them. AdamW also
    has `square` (C_local * K, D), the second moments, and `times` (C_local * K,), how often each
    row was sampled, for the bias correction of its moments.
    """

    weight: torch.Tensor
    velocity: torch.Tensor
    square: torch.Tensor
    times: torch.Tensor
    row_state = ("weight", "velocity", "square", "times")

    def __init__(
        self,
        centers: torch.Tensor,
        *,
        rows: range,
        options: SoftmaxOptions,
        ranks: Ranks,
        momentum: float,
        weight_decay: float,
        momentum_dtype: torch.dtype,
        accumulation: int,
        adamw: bool,
    ) -> None:
        super().__init__()
        self.head, self.options, self.rows, self.ranks = options.head, options, rows, ranks
        self.momentum, self.weight_decay, self.accumulation = momentum, weight_decay, accumulation
        self.lr, self.adamw = 0.0, adamw
        self.register_buffer("weight", centers)
        self.register_buffer("velocity", torch.zeros_like(centers, dtype=momentum_dtype))
        if adamw:
            # Always float32: bfloat16 would lose additions of a thousandth.
            self.register_buffer("square", torch.zeros_like(centers))
            self.register_buffer("times", torch.zeros(len(centers)))
        self._chosen: _Chosen | None = None

    def before_step(self, lr: float) -> None:
        """Keep the learning rate."""
        self.lr, self._chosen = lr, None

    def forward(
        self,
        backbone: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """sample (n,): sorted classes that this rank holds, those of the step's labels among them.

        The first micro-batch of a step brings it, and it holds for the others.
        """
        embeddings = backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            embeddings, labels = gather_batch(
                embeddings, labels, self.ranks, dtype=self.weight.dtype
            )
            if sample is not None:
                self._chosen = self._choose(sample)
            chosen = self._chosen
            if chosen is None:
                raise ValueError(
                    "partial classifier: the step's first batch brings no sample; use the loader "
                    "of FACTS.make_loader, or draw one with ClassSampler"
                )
            held = (labels >= self.rows.start) & (labels < self.rows.stop)
            loss = margin_loss(
                embeddings,
                chosen.centers,
                torch.where(held, torch.searchsorted(chosen.classes, labels), -1),
                options=self.options,
                ranks=self.ranks,
                training=self.training,
            )
        if self.training:
            loss.register_hook(chosen.note_loss_factor)
        return loss

    def _choose(self, sample: torch.Tensor) -> _Chosen:
        index = sub_rows(sample - self.rows.start, self.options.sub_centers)
        return _Chosen(sample, index, self.weight[index].requires_grad_(self.training))

    def own_gradients(self) -> list[torch.Tensor]:
        """The gradient of the sampled centers, times the factors of the loss."""
        chosen = self._chosen
        return [] if chosen is None or chosen.centers.grad is None else [chosen.centers.grad]

    @torch.no_grad()
    def after_step(self, taken: torch.Tensor) -> None:
        """Update the sampled centers, and no others, by one step of SGD or AdamW."""
        chosen, self._chosen = self._chosen, None
        if chosen is None or chosen.centers.grad is None or chosen.loss_factor is None:
            return

        # One chunk of rows at a time, because a step makes several copies of its rows.
        for first in range(0, len(chosen.index), self.options.chunk):
            some = slice(first, first + self.options.chunk)
            gradient = chosen.centers.grad[some] / (chosen.loss_factor * self.accumulation)
            given = (chosen.index[some], gradient, taken, self.lr, self.weight_decay)
            if self.adamw:
                adamw_step(self.weight, self.velocity, self.square, self.times, *given)
            else:
                sgd_step(self.weight, self.velocity, *given, momentum=self.momentum)


def sub_rows(classes: torch.Tensor, sub_centers: int) -> torch.Tensor:
    """Rows of the weight that hold the sub-centers of the given local classes, in order."""
    if sub_centers == 1:
        return classes
    within = torch.arange(sub_centers, device=classes.device)
    return (classes[:, None] * sub_centers + within).flatten()


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    seed: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    accumulation: int = 1,
    optimizer_name: Literal["sgd", "adamw"] = "sgd",
    precision: str = "fp32",
    batch_size: int = 128,
    *,
    sample_rate: SampleRate = 0.1,
    chunk: Chunk = "auto",
    matmul_dtype: MatmulName = "auto",
    sub_centers: Count = 1,
    filter_above: Share = 0.0,
    momentum_dtype: FloatName = "float32",
) -> PartialFC:
    """Partial FC: a random share of the identities in each step.

    sample_rate: share of the identities that take part in each step, including those of the batch.
    chunk: classes whose logits are computed at a time. auto: as many as suit the device.
    matmul_dtype: number type to which embeddings and centers are rounded before their matrix
        products. auto: that of `run.precision` on CUDA, and float32 elsewhere.
    sub_centers: centers per identity, of which the nearest counts.
    filter_above: a cosine. An image that is more alike than this to the center of another class
        counts as mislabeled, and that logit becomes 0. 0: no filter.
    momentum_dtype: number type in which the momentum of the centers is stored.
    """
    rows = shard(classes, ranks)
    held = range(rows.start * sub_centers, rows.stop * sub_centers)
    return PartialFC(
        initial_centers(held, embedding_of(backbone), seed=seed),
        rows=rows,
        options=softmax_options(
            head,
            backbone,
            chunk=chunk,
            matmul_dtype=matmul_dtype,
            precision=precision,
            images=batch_size * ranks.world,
            ranks=ranks,
            sub_centers=sub_centers,
            filter_above=filter_above,
        ),
        ranks=ranks,
        momentum=momentum,
        weight_decay=weight_decay,
        momentum_dtype=DTYPES[momentum_dtype],
        accumulation=accumulation,
        adamw=optimizer_name == "adamw",
    )


def _memory(config: Config, sizes: Sizes) -> Memory:
    options, optim = config.classifier.options, config.optim
    rows = -(-sizes.classes // sizes.ranks) * options["sub_centers"]
    numbers = rows * sizes.embedding

    # The step keeps a copy of its rows, and their gradient.
    sampled = 4 * round(rows * options["sample_rate"]) * sizes.embedding
    moments = DTYPES[options["momentum_dtype"]].itemsize + 4 * (optim.name == "adamw")
    kept = {
        "centers": 4 * numbers,
        "centers' momentum": numbers * moments,
        "centers' gradient": 2 * sampled,
    }
    chunk = chunk_memory(options, sizes, rows=rows, images=optim.batch_size * sizes.ranks)
    return Memory(kept, chunk)


def _work(config: Config, sizes: Sizes) -> Work:
    options = config.classifier.options
    sampled = round(-(-sizes.classes // sizes.ranks) * options["sample_rate"])
    return Work(config.optim.batch_size * sizes.ranks, sampled * options["sub_centers"])


def _instead(config: Config) -> list[Overrides]:
    """This classifier with smaller and smaller samples."""
    choose = [] if config.classifier.name == "partial" else ["classifier={name: partial}"]
    return [[*choose, f"classifier.sample_rate={share}"] for share in (0.5, 0.3, 0.1)]


def make_loader(
    faces: FaceSet, config: Config, *, batch_size: int, rank: int, world: int, **loader: Any
) -> Loader:
    """An ordinary loader that draws the sample of each optimizer step."""
    sampler = ClassSampler(
        faces.num_classes,
        config.classifier.options["sample_rate"],
        seed=config.run.seed,
        rows=shard(faces.num_classes, Ranks(rank, world)),
    )
    return ordinary_loader(
        faces,
        config,
        batch_size=batch_size,
        rank=rank,
        world=world,
        draw=sampler,
        **loader,
    )


FACTS = ClassifierFacts(
    memory=_memory,
    make_loader=make_loader,
    check=lambda config: check_own_step(config, adamw=True),
    work=_work,
    lighter=lambda config: [["classifier.momentum_dtype=bfloat16"]],
    instead=_instead,
)
