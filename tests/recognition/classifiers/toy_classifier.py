"""A classifier in one file: test_toy_classifier.py puts it into a copy of the checkout.

A softmax over all classes, sharded over the ranks, which counts how often it has seen each class.
"""

from __future__ import annotations

import torch
from torch import nn

from data.options import Count
from recognition.backbones import embedding_of
from recognition.classifiers import ClassifierFacts, Memory, Sizes
from recognition.classifiers._margin_softmax import SoftmaxOptions, gather_batch, margin_loss
from recognition.classifiers._rows import initial_centers, shard
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead


class Counting(nn.Module):
    """`weight`: this rank's centers (C_local, D). `seen`: images per class so far (C_local,)."""

    seen: torch.Tensor
    row_state = ("weight", "seen")

    def __init__(
        self, centers: torch.Tensor, rows: range, options: SoftmaxOptions, ranks: Ranks
    ) -> None:
        super().__init__()
        self.rows, self.options, self.ranks = rows, options, ranks
        self.weight = nn.Parameter(centers)
        self.register_buffer("seen", torch.zeros(len(centers), dtype=torch.int64))

    def before_step(self, lr: float) -> None:
        """Nothing to do."""

    def own_gradients(self) -> list[torch.Tensor]:
        return []

    def after_step(self, taken: torch.Tensor) -> None:
        """Nothing to do."""

    def forward(
        self,
        backbone: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None,
    ) -> torch.Tensor:
        embeddings, labels = gather_batch(
            backbone(images), labels, self.ranks, dtype=self.weight.dtype
        )
        held = (labels >= self.rows.start) & (labels < self.rows.stop)
        self.seen += torch.bincount(labels[held] - self.rows.start, minlength=len(self.rows))
        places = torch.where(held, labels - self.rows.start, -1)
        return margin_loss(
            embeddings,
            self.weight,
            places,
            options=self.options,
            ranks=self.ranks,
            training=self.training,
        )


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    seed: int,
    *,
    chunk: Count = 64,
) -> Counting:
    """A softmax that counts.

    chunk: classes computed at a time.
    """
    rows = shard(classes, ranks)
    centers = initial_centers(rows, embedding_of(backbone), seed=seed)
    return Counting(centers, rows, SoftmaxOptions(head, chunk), ranks)


def _check(config: Config) -> None:
    if config.optim.accumulation > 1:
        raise ValueError(f"optim.accumulation: found {config.optim.accumulation}, expected 1")


def _memory(config: Config, sizes: Sizes) -> Memory:
    rows = -(-sizes.classes // sizes.ranks)
    centers = 4 * rows * sizes.embedding
    kept = {"centers": centers * (1 + sizes.optimizer_states), "counts": 8 * rows}
    return Memory(kept, chunk=4 * config.optim.batch_size * config.classifier.options["chunk"])


FACTS = ClassifierFacts(memory=_memory, check=_check)
