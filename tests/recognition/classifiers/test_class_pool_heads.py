"""Every margin head with the class pool, against dense matrices of the filled columns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from data.parts import find_part, part_names
from recognition.classifiers._margin_softmax import SoftmaxOptions
from recognition.classifiers._pool import ClassPool
from recognition.classifiers._pool_loss import pool_loss
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead

SIZE, CLASSES, DEPTH, HARDEST = 12, 30, 8, 3


def pool_with_history(generator: torch.Generator) -> ClassPool:
    """A pool with some empty columns, some new ones, and some with an old second slot."""
    pool = ClassPool(SIZE, CLASSES, DEPTH).double()
    for labels in ([1, 2, 3, 4], [2, 5, 5, 6], [7, 1, 2, 8]):
        features = F.normalize(torch.randn(4, DEPTH, generator=generator, dtype=torch.float64))
        plan = pool.plan(torch.tensor(labels))
        pool.commit(plan, features)
    return pool


def dense_loss(
    probes: torch.Tensor, labels: torch.Tensor, pool: ClassPool, renewed: set[int], head: MarginHead
) -> torch.Tensor:
    """The reference; its pool holds the gallery batch already."""
    filled = [column for column in range(SIZE) if pool.identities[column] >= 0]
    matrices = [
        torch.stack([pool.features[int(second and c in renewed), c] for c in filled])
        for second in (False, True)
    ]
    places = [
        filled.index(int(pool.columns[label])) if pool.columns[label] >= 0 else -1
        for label in labels.tolist()
    ]
    inside = [i for i, place in enumerate(places) if place >= 0]
    outside = [i for i, place in enumerate(places) if place < 0]
    own = torch.tensor([max(place, 0) for place in places])
    norms = probes.norm(dim=1)
    cosines = [F.normalize(probes) @ matrix.T for matrix in matrices]
    targets = [cos.gather(1, own[:, None])[:, 0] for cos in cosines]
    seen = targets[0].detach().clone()
    seen[outside] = seen[inside].mean()
    head.update_stats(seen, norms.detach())
    total = torch.zeros((), dtype=torch.float64)
    for cos, cos_t in zip(cosines, targets, strict=True):
        target = head.target(cos_t, norms)
        logits = head.negatives(cos, cos_t.detach()[:, None]).scatter(
            1, own[:, None], target[:, None]
        )
        losses = F.cross_entropy(head.scale * logits, own, reduction="none")
        penalty = head.penalty(norms)
        losses = losses if penalty is None else losses + penalty
        hardest = cos[outside].sort(1, descending=True).values[:, :HARDEST]
        total = total + losses[inside].mean() + hardest.clamp(min=0).mean()
    return total


@pytest.mark.parametrize("name", part_names("recognition.heads"))
@pytest.mark.parametrize("chunk", [5, 100])
def test_every_head_equals_its_dense_form(name: str, chunk: int) -> None:
    generator = torch.Generator().manual_seed(2)
    pool = pool_with_history(generator)
    heads = [find_part("recognition.heads", name).build(scale=16.0).double() for _ in range(2)]
    features = F.normalize(torch.randn(5, DEPTH, generator=generator, dtype=torch.float64))
    lengths = torch.tensor([[3.0], [9.0], [20.0], [40.0], [60.0], [150.0], [25.0]])
    directions = F.normalize(torch.randn(7, DEPTH, generator=generator, dtype=torch.float64))
    gallery = torch.tensor([2, 9, 9, 10, 8])
    labels = torch.tensor([2, 9, 10, 4, 1, 20, 21])  # touched, placed, left alone, absent
    probes = [(directions * lengths).requires_grad_() for _ in range(2)]

    plan = pool.plan(gallery)
    ours = pool_loss(
        probes[0],
        labels,
        pool,
        plan,
        features,
        options=SoftmaxOptions(heads[0], chunk),
        hardest=HARDEST,
        ranks=Ranks(),
        training=True,
    )
    after = copy.deepcopy(pool)
    after.commit(plan, features)
    # there before, and given twice
    renewed = {
        int(pool.columns[2]),
        int(pool.columns[8]),
        int(after.columns[9]),
    }
    dense = dense_loss(probes[1], labels, after, renewed, heads[1])
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-9)
    pool.commit(plan, features)  # The backward pass may come after the commit.
    for loss in (ours, dense):
        loss.backward()
    torch.testing.assert_close(probes[0].grad, probes[1].grad, rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(heads[0].buffers(), heads[1].buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
