"""Partial FC (arXiv 2203.15565): each softmax has the batch's classes and some random others.

Only the sampled centers get gradient, momentum and weight decay. (With the dense gradient of the
released code the others decay and drift as well.) At sample_rate 1 this is the full classifier
trained by torch.optim.SGD or AdamW. The sample does not depend on the number of ranks: every rank
draws the same one and keeps the centers that it holds.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from data.options import Count, Range, Share
from recognition.backbones import embedding_of
from recognition.classifiers import ClassifierFacts, Memory, Overrides, Sizes, Work
from recognition.classifiers._margin_softmax import (
    Chunk,
    SoftmaxOptions,
    chunk_memory,
    gather_batch,
    margin_loss,
    softmax_options,
)
from recognition.classifiers._matmul import DTYPES, FloatName
from recognition.classifiers._row_optimizers import adamw_step, check_own_step, sgd_step
from recognition.classifiers._rows import initial_centers, shard
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead
from recognition.seeds import generator

SampleRate = Annotated[float, Range(above=0, at_most=1)]


@dataclass
class Sample:
    """The centers of one forward pass.

    index (n,): their rows in the weight. centers (n,D): the copy of those rows that gets the
    gradient. loss_factor: what the trainer multiplied the loss by; known after the backward pass.
    """

    index: torch.Tensor
    centers: torch.Tensor
    loss_factor: torch.Tensor | None = None

    def note_loss_factor(self, gradient: torch.Tensor) -> None:
        """A hook on the loss, whose own gradient is the factor that the trainer put on it.

        A trainer multiplies a loss by the loss scale and divides it by the micro-batches per step.
        The factor stays on the device: asking a GradScaler for its scale would wait for the GPU.
        """
        self.loss_factor = gradient.detach()

    def gradient(self, accumulation: int) -> torch.Tensor:
        """What this pass adds to the gradient of the step's mean loss (n,D), without loss scale."""
        if self.centers.grad is None or self.loss_factor is None:
            raise RuntimeError("partial classifier: after_step without a backward pass")
        return self.centers.grad / (self.loss_factor * accumulation)


class PartialFC(nn.Module):
    """(backbone, images, labels) -> mean loss of the global batch.

    `weight` and `velocity` are buffers (C_local * K, D), K sub-centers per class. `after_step`
    updates the sampled centers by SGD or AdamW; the run's optimizer does not see them. With
    accumulation every micro-batch has its own sample, and `after_step` adds their gradients. AdamW
    also has `square` (C_local * K, D), the second moments, and `times` (C_local * K,), how often
    each row was sampled, for the bias correction of its moments.
    """

    weight: torch.Tensor
    velocity: torch.Tensor
    square: torch.Tensor
    times: torch.Tensor
    draws: torch.Tensor
    row_state = ("weight", "velocity", "square", "times")

    def __init__(
        self,
        centers: torch.Tensor,
        *,
        classes: int,
        rows: range,
        sample_rate: float,
        options: SoftmaxOptions,
        ranks: Ranks,
        seed: int,
        momentum: float,
        weight_decay: float,
        momentum_dtype: torch.dtype,
        accumulation: int,
        adamw: bool,
    ) -> None:
        super().__init__()
        self.head = options.head
        self.classes, self.rows, self.sample_rate, self.seed = classes, rows, sample_rate, seed
        self.options, self.ranks = options, ranks
        self.momentum, self.weight_decay, self.accumulation = momentum, weight_decay, accumulation
        self.lr, self.adamw = 0.0, adamw
        self.register_buffer("weight", centers)
        self.register_buffer("velocity", torch.zeros_like(centers, dtype=momentum_dtype))
        if adamw:
            # Always float32: bfloat16 would lose additions of a thousandth.
            self.register_buffer("square", torch.zeros_like(centers))
            self.register_buffer("times", torch.zeros(len(centers)))
        self.register_buffer("draws", torch.tensor(0))
        self._samples: list[Sample] = []

    def before_step(self, lr: float) -> None:
        """Keep the learning rate, and drop the samples of a step that was skipped."""
        self.lr = lr
        self._samples.clear()

    def forward(
        self, backbone: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        embeddings = backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            embeddings, labels = gather_batch(
                embeddings, labels, self.ranks, dtype=self.weight.dtype
            )

            # The sampled classes that this rank holds, and the place of each label among them.
            sampled = self._sample(labels)
            places = torch.searchsorted(sampled, labels)
            held = (labels >= self.rows.start) & (labels < self.rows.stop)

            index = sub_rows(sampled - self.rows.start, self.options.sub_centers)
            sample = Sample(index, self.weight[index].requires_grad_(self.training))
            loss = margin_loss(
                embeddings,
                sample.centers,
                torch.where(held, places, -1),
                options=self.options,
                ranks=self.ranks,
                training=self.training,
            )
        if self.training:
            self._samples.append(sample)
            loss.register_hook(sample.note_loss_factor)
        return loss

    def _sample(self, labels: torch.Tensor) -> torch.Tensor:
        """Numbers of the sampled classes that this rank holds, sorted.

        They include every label of the batch that it holds.
        """
        draw = generator(self.seed, int(self.draws))
        sampled = sample_classes(self.classes, self.sample_rate, labels, draw)
        if self.training:
            self.draws += 1
        return sampled[(sampled >= self.rows.start) & (sampled < self.rows.stop)]

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the sampled centers, and no others, by one step of SGD or AdamW."""
        samples = [sample for sample in self._samples if sample.centers.grad is not None]
        self._samples.clear()
        if not samples:
            return

        # A row may be in the samples of several micro-batches: add its gradients, update it once.
        index, slots = torch.cat([sample.index for sample in samples]).unique(return_inverse=True)
        gradient = self.weight.new_zeros(len(index), self.weight.shape[1])
        own_slots = slots.split([len(sample.index) for sample in samples])
        for sample, places in zip(samples, own_slots, strict=True):
            gradient.index_add_(0, places, sample.gradient(self.accumulation))

        # One chunk of rows at a time, because a step makes several copies of its rows.
        for first in range(0, len(index), self.options.chunk):
            some = slice(first, first + self.options.chunk)
            given = (index[some], gradient[some], self.lr, self.weight_decay)
            if self.adamw:
                adamw_step(self.weight, self.velocity, self.square, self.times, *given)
            else:
                sgd_step(self.weight, self.velocity, *given, momentum=self.momentum)


def sample_classes(
    classes: int, sample_rate: float, labels: torch.Tensor, draw: torch.Generator
) -> torch.Tensor:
    """Sorted class numbers: all of `labels`, and random others up to sample_rate * classes.

    Where sample_rate is at most a half, time and memory grow with the sample alone: classes are
    drawn with replacement and made distinct. Two draws per wanted class leave enough distinct ones.
    """
    positives = labels.unique()
    # At least 2: a single class would have no negatives.
    count = max(round(sample_rate * classes), len(positives), 2)
    if count >= classes:
        return torch.arange(classes, device=labels.device)

    if 2 * count > classes:
        drawn = torch.randperm(classes, generator=draw)[:count]
    else:
        distinct = torch.randint(classes, (2 * count + 64,), generator=draw).unique()
        drawn = distinct[torch.randperm(len(distinct), generator=draw)[:count]]

    drawn = drawn.to(labels.device)
    others = drawn[~torch.isin(drawn, positives)][: count - len(positives)]
    return torch.cat([positives, others]).sort().values


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
    *,
    sample_rate: SampleRate = 0.1,
    chunk: Chunk = "auto",
    matmul_dtype: FloatName = "float32",
    sub_centers: Count = 1,
    filter_above: Share = 0.0,
    momentum_dtype: FloatName = "float32",
) -> PartialFC:
    """Partial FC: a random share of the identities in each step.

    sample_rate: share of the identities that take part in each step, including those of the batch.
    chunk: classes whose logits are computed at a time. auto: as many as suit the device.
    matmul_dtype: number type to which embeddings and centers are rounded before their matrix
        products.
    sub_centers: centers per identity, of which the nearest counts.
    filter_above: a cosine. An image that is more alike than this to the center of another class
        counts as mislabeled, and that logit becomes 0. 0: no filter.
    momentum_dtype: number type in which the momentum of the centers is stored.
    """
    rows = shard(classes, ranks)
    held = range(rows.start * sub_centers, rows.stop * sub_centers)
    return PartialFC(
        initial_centers(held, embedding_of(backbone), seed=seed),
        classes=classes,
        rows=rows,
        sample_rate=sample_rate,
        options=softmax_options(
            head,
            backbone,
            chunk=chunk,
            matmul_dtype=matmul_dtype,
            sub_centers=sub_centers,
            filter_above=filter_above,
        ),
        ranks=ranks,
        seed=seed,
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

    # Each micro-batch keeps a copy of its rows, and their gradient.
    sampled = 4 * round(rows * options["sample_rate"]) * sizes.embedding
    moments = DTYPES[options["momentum_dtype"]].itemsize + 4 * (optim.name == "adamw")
    kept = {
        "centers": 4 * numbers,
        "centers' momentum": numbers * moments,
        "centers' gradient": 2 * sampled * optim.accumulation,
    }

    # after_step adds the gradients of all rows that are in any micro-batch's sample.
    touched = round(rows * (1 - (1 - options["sample_rate"]) ** optim.accumulation))
    chunk = chunk_memory(options, sizes, rows=rows, images=optim.batch_size * sizes.ranks)
    return Memory(kept, chunk, step=sampled + 4 * touched * sizes.embedding)


def _work(config: Config, sizes: Sizes) -> Work:
    options = config.classifier.options
    sampled = round(-(-sizes.classes // sizes.ranks) * options["sample_rate"])
    return Work(config.optim.batch_size * sizes.ranks, sampled * options["sub_centers"])


def _instead(config: Config) -> list[Overrides]:
    """This classifier with smaller and smaller samples."""
    choose = [] if config.classifier.name == "partial" else ["classifier={name: partial}"]
    return [[*choose, f"classifier.sample_rate={share}"] for share in (0.5, 0.3, 0.1)]


FACTS = ClassifierFacts(
    memory=_memory,
    check=lambda config: check_own_step(config, adamw=True),
    work=_work,
    lighter=lambda config: [["classifier.momentum_dtype=bfloat16"]],
    instead=_instead,
)
