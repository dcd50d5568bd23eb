"""The full classifier against the textbook loss in float64: normalise, product, margin on the target, cross entropy."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recognition.classifiers import full
from recognition.distributed import Ranks
from recognition.heads import arcface, cosface

B, C, D = 12, 37, 16


class Stub(nn.Module):
    """A backbone that returns what it is given."""

    embedding = D

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def textbook(embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, margin: str) -> torch.Tensor:
    cos = F.normalize(embeddings) @ F.normalize(weight).T
    own = cos.gather(1, labels[:, None])
    changed = own - 0.4 if margin == "cosface" else (own.clamp(-1, 1).acos() + 0.5).cos()
    return F.cross_entropy(64 * cos.scatter(1, labels[:, None], changed), labels)


def build(head: nn.Module, **options: object) -> full.Full:
    return full.build(backbone=Stub(), classes=C, head=head, ranks=Ranks(), seed=3, **options)


@pytest.mark.parametrize("chunk", [1, 5, 37, 1000, "auto"])
@pytest.mark.parametrize("margin", ["arcface", "cosface"])
def test_loss_and_gradients_equal_the_textbook(margin: str, chunk: int | str) -> None:
    torch.manual_seed(0)
    head = arcface.build(guard=False) if margin == "arcface" else cosface.build()
    classifier = build(head, chunk=chunk).double()
    embeddings = (torch.randn(B, D) * 3).double().requires_grad_()
    labels = torch.randint(C, (B,))
    loss = classifier(Stub(), embeddings, labels)
    got = torch.autograd.grad(loss, (embeddings, classifier.weight))
    expected = textbook(embeddings, classifier.weight, labels, margin)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for one, two in zip(got, torch.autograd.grad(expected, (embeddings, classifier.weight)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
