"""What the classifier tests share: a backbone that does nothing, and a literal margin softmax."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recognition.heads._margin import MarginHead


class Stub(nn.Module):
    """A backbone that returns its input."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def literal_loss(
    embeddings: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    head: MarginHead,
    sub_centers: int = 1,
    filter_above: float = 0.0,
) -> torch.Tensor:
    """The cross entropy of all logits at once, with one-hot targets."""
    cos = F.normalize(embeddings) @ F.normalize(weight).T
    cos = cos.unflatten(1, (-1, sub_centers)).amax(2)
    one_hot = F.one_hot(labels, cos.shape[1]).bool()
    own, norms = cos[one_hot], embeddings.norm(dim=1)
    if filter_above > 0:
        cos = torch.where(cos > filter_above, torch.zeros_like(cos), cos)
    logits = head.scale * torch.where(
        one_hot, head.target(own, norms)[:, None], head.negatives(cos, own.detach()[:, None])
    )
    loss = F.cross_entropy(logits, labels)
    penalty = head.penalty(norms)
    return loss if penalty is None else loss + penalty.mean()


@pytest.fixture
def stub() -> Callable[[int], Stub]:
    return Stub


@pytest.fixture
def literal() -> Callable[..., torch.Tensor]:
    return literal_loss
