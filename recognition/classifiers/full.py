"""The full classifier: one center (or a few) for every identity, all of them in every step's
softmax."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from recognition.backbones import embedding_of
from recognition.classifiers._margin_softmax import (
    FusedSGD,
    Options,
    gather_batch,
    make_options,
    margin_loss,
)
from recognition.classifiers._rows import initial_centers, number_type, shard
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead


class FullClassifier(nn.Module):
    """(backbone, images, labels) -> mean loss of the global batch. `weight`: this rank's centers
    (C_local * K, D).

    Without `sgd`, `weight` is a parameter and the run's optimizer trains it. With it (momentum,
    weight decay, dtype of the velocity), `weight` and `velocity` are buffers and the backward pass
    takes their SGD step.
    """

    weight: torch.Tensor
    velocity: torch.Tensor

    def __init__(
        self,
        centers: torch.Tensor,
        *,
        rows: range,
        options: Options,
        ranks: Ranks,
        sgd: tuple[float, float, torch.dtype] | None,
    ) -> None:
        super().__init__()
        self.head = options.head
        self.rows, self.options, self.ranks, self.sgd = rows, options, ranks, sgd
        self.lr = 0.0
        if sgd is None:
            self.weight = nn.Parameter(centers)
        else:
            self.register_buffer("weight", centers)
            self.register_buffer("velocity", torch.zeros_like(centers, dtype=sgd[2]))

    def prepare(self, lr: float) -> None:
        """Before the forward pass of each optimizer step: the rate of a fused update."""
        self.lr = lr

    def update(self) -> None:
        """After a successful optimizer step. Nothing to do: the optimizer or the backward pass
        moved the centers."""

    def forward(
        self, backbone: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        embeddings = backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            embeddings, labels = gather_batch(
                embeddings, labels, self.ranks, dtype=self.weight.dtype
            )
            places = torch.where(
                (labels >= self.rows.start) & (labels < self.rows.stop),
                labels - self.rows.start,
                -1,
            )
            fused = None
            if self.sgd is not None and self.training:
                fused = FusedSGD(
                    self.velocity, momentum=self.sgd[0], weight_decay=self.sgd[1], lr=self.lr
                )
            return margin_loss(
                embeddings,
                self.weight,
                places,
                options=self.options,
                ranks=self.ranks,
                training=self.training,
                fused=fused,
            )


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    seed: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    accumulation: int = 1,
    loss_scaling: bool = False,
    *,
    chunk: int | Literal["auto"] = "auto",
    matmul: str = "float32",
    sub_centers: int = 1,
    filter_above: float = 0.0,
    fused: bool = False,
    momentum_dtype: str = "float32",
) -> FullClassifier:
    """A full classifier for `classes` identities on embeddings of `backbone.embedding` numbers.

    chunk: classes computed at a time. matmul: float32 or bfloat16 products. fused: take the
    centers' SGD step in the backward pass, with `momentum`, `weight_decay` and the velocity kept in
    `momentum_dtype`. accumulation, loss_scaling: what the run does (micro-batches a step; a
    GradScaler). Both forbid the fused update, which can neither wait nor be taken back.
    """
    if fused and (accumulation > 1 or loss_scaling):
        reason = f"accumulation {accumulation}" if accumulation > 1 else "fp16 loss scaling"
        raise ValueError(
            f"classifier.fused: true with {reason}: the backward pass cannot update then; turn one off"
        )
    rows = shard(classes, ranks)
    held = range(rows.start * sub_centers, rows.stop * sub_centers)
    sgd = (
        (momentum, weight_decay, number_type("classifier.momentum_dtype", momentum_dtype))
        if fused
        else None
    )
    options = make_options(
        head,
        backbone,
        chunk=chunk,
        matmul=matmul,
        sub_centers=sub_centers,
        filter_above=filter_above,
    )
    centers = initial_centers(held, embedding_of(backbone), seed=seed)
    return FullClassifier(centers, rows=rows, options=options, ranks=ranks, sgd=sgd)
