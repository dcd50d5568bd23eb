"""Partial FC (arXiv 2203.15565): each step's softmax runs over the batch's own classes and a random
subset of the rest.

Only the sampled centers receive gradient, momentum and weight decay (the released code's dense
gradient lets the others decay and drift as well). At rate 1 this is the full classifier trained by
torch.optim.SGD or AdamW. The sample does not depend on the number of ranks: every rank draws the
same one and keeps the centers that it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from recognition.backbones import embedding_of
from recognition.classifiers._margin_softmax import Options, gather_batch, make_options, margin_loss
from recognition.classifiers._rows import initial_centers, number_type, shard
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead
from recognition.seeds import generator

BETAS, EPS = (0.9, 0.999), 1e-8  # torch.optim.AdamW's defaults, which the backbone is trained with


@dataclass
class Sample:
    """One forward pass's centers: their rows in the weight, the copy that takes the gradient, what
    backward began with.

    start is loss scale / accumulation when the trainer scales its loss so; dividing by it undoes a
    GradScaler.
    """

    index: torch.Tensor
    centers: torch.Tensor
    start: torch.Tensor | None = None

    def gradient(self, accumulation: int) -> torch.Tensor:
        """The centers' part in the gradient of the step's mean loss, unscaled."""
        if self.centers.grad is None or self.start is None:
            raise RuntimeError("partial classifier: update without a backward pass")
        return self.centers.grad / (self.start * accumulation)


class PartialFC(nn.Module):
    """(backbone, images, labels) -> mean loss of the global batch. `weight`, `velocity`: buffers
    (C_local * K, D).

    `update` takes the sampled centers' SGD or AdamW step; the run's optimizer does not know them.
    With accumulation every micro-batch samples anew and `update` joins their gradients. AdamW adds
    `square` (C_local * K, D), the second moments, and `times` (C_local * K,): a row's moments are
    corrected by how often that row was sampled.
    """

    weight: torch.Tensor
    velocity: torch.Tensor
    square: torch.Tensor
    times: torch.Tensor
    draws: torch.Tensor

    def __init__(
        self,
        centers: torch.Tensor,
        *,
        classes: int,
        rows: range,
        sample_rate: float,
        options: Options,
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
            # bfloat16 would lose additions of a thousandth
            self.register_buffer("square", torch.zeros_like(centers))
            self.register_buffer("times", torch.zeros(len(centers)))
        self.register_buffer("draws", torch.tensor(0))
        self._samples: list[Sample] = []

    def prepare(self, lr: float) -> None:
        """Before the forward pass of each optimizer step: the rate; what a skipped step left behind
        is dropped."""
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
            mine = self._sample(labels)
            places = torch.searchsorted(mine, labels)
            held = (labels >= self.rows.start) & (labels < self.rows.stop)
            index = sub_rows(mine - self.rows.start, self.options.sub_centers)
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
            loss.register_hook(lambda start: setattr(sample, "start", start.detach()))
        return loss

    def _sample(self, labels: torch.Tensor) -> torch.Tensor:
        """This rank's part of the step's classes, as sorted global class numbers; it holds every
        label of its own."""
        sampled = sample_classes(
            self.classes, self.sample_rate, labels, generator(self.seed, int(self.draws))
        )
        if self.training:
            self.draws += 1
        return sampled[(sampled >= self.rows.start) & (sampled < self.rows.stop)]

    @torch.no_grad()
    def update(self) -> None:
        """After a successful optimizer step: the same step on the sampled centers alone."""
        samples = [sample for sample in self._samples if sample.centers.grad is not None]
        self._samples.clear()
        if not samples:
            return
        index, slots = torch.cat([sample.index for sample in samples]).unique(return_inverse=True)
        gradient = self.weight.new_zeros(len(index), self.weight.shape[1])
        for sample, own in zip(
            samples, slots.split([len(sample.index) for sample in samples]), strict=True
        ):
            gradient.index_add_(0, own, sample.gradient(self.accumulation))
        for first in range(0, len(index), self.options.chunk):
            rows = slice(first, first + self.options.chunk)
            (self._adamw_step if self.adamw else self._sgd_step)(index[rows], gradient[rows])

    def _sgd_step(self, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        centers = self.weight[rows]
        step = self.velocity[rows].to(centers.dtype).mul_(self.momentum).add_(gradient)
        step.add_(centers, alpha=self.weight_decay)
        self.velocity[rows] = step.to(self.velocity.dtype)
        self.weight[rows] = centers.add_(step, alpha=-self.lr)

    def _adamw_step(self, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        centers = self.weight[rows].mul_(1 - self.lr * self.weight_decay)
        times = self.times[rows] + 1
        mean = self.velocity[rows].to(centers.dtype).lerp_(gradient, 1 - BETAS[0])
        square = self.square[rows].lerp_(gradient.square(), 1 - BETAS[1])
        self.velocity[rows], self.square[rows], self.times[rows] = (
            mean.to(self.velocity.dtype),
            square,
            times,
        )
        first, second = ((1 - beta ** times.to(centers.dtype)).unsqueeze(1) for beta in BETAS)
        self.weight[rows] = centers.sub_(
            self.lr * (mean / first) / ((square / second).sqrt_() + EPS)
        )


def sample_classes(
    classes: int, sample_rate: float, labels: torch.Tensor, draw: torch.Generator
) -> torch.Tensor:
    """Sorted class numbers: all of `labels`, and uniformly drawn others up to sample_rate * classes
    in all.

    Costs O(sampled): where the rate is small, draws with replacement are made distinct; two draws
    for each class wanted are enough, as the rate is at most a half there.
    """
    positives = labels.unique()
    # a lone class would have no negatives
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
    return (
        classes[:, None] * sub_centers + torch.arange(sub_centers, device=classes.device)
    ).flatten()


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    seed: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    accumulation: int = 1,
    optimizer_name: str = "sgd",
    loss_scaling: bool = False,
    *,
    sample_rate: float = 0.1,
    chunk: int | Literal["auto"] = "auto",
    matmul: str = "float32",
    sub_centers: int = 1,
    filter_above: float = 0.0,
    momentum_dtype: str = "float32",
) -> PartialFC:
    """Partial FC over `classes` identities. sample_rate in (0, 1]: share of the classes in each
    step.

    The batch's own classes count towards it. Other options as the full classifier's. accumulation:
    micro-batches an optimizer step. optimizer_name: sgd or adamw, the run's. loss_scaling is
    admitted: the centers' gradient is divided by whatever the trainer multiplied the loss with,
    times accumulation.
    """
    if not 0 < sample_rate <= 1:
        raise ValueError(
            f"classifier.sample_rate {sample_rate}: expected more than 0 and at most 1"
        )
    rows = shard(classes, ranks)
    embedding = embedding_of(backbone)
    held = range(rows.start * sub_centers, rows.stop * sub_centers)
    return PartialFC(
        initial_centers(held, embedding, seed=seed),
        classes=classes,
        rows=rows,
        sample_rate=sample_rate,
        options=make_options(
            head,
            backbone,
            chunk=chunk,
            matmul=matmul,
            sub_centers=sub_centers,
            filter_above=filter_above,
        ),
        ranks=ranks,
        seed=seed,
        momentum=momentum,
        weight_decay=weight_decay,
        momentum_dtype=number_type("classifier.momentum_dtype", momentum_dtype),
        accumulation=accumulation,
        adamw=optimizer_name == "adamw",
    )
