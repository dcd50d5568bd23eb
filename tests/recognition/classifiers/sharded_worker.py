"""One rank of test_sharded.py: trains a small model in every variant and writes its results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recognition.classifiers import full, partial
from recognition.classifiers._rows import shard
from recognition.classifiers._sample import ClassSampler
from recognition.distributed import Ranks, ranks_of_this_run
from recognition.heads import adaface, arcface, cosface, curricularface, elasticface, magface

TAKEN = torch.tensor(True)

B, C, D, INPUTS, STEPS = 12, 37, 8, 6, 4
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "full arcface": (full, arcface, {"chunk": 5}),
    "full magface": (full, magface, {"chunk": 5}),
    "full adaface": (full, adaface, {"chunk": 100}),
    "full curricularface": (full, curricularface, {"chunk": 4}),
    "full elasticface": (full, elasticface, {}),
    "full sub-centers": (full, cosface, {"chunk": 4, "sub_centers": 3}),
    "full filtered": (full, cosface, {"chunk": 4, "filter_above": 0.2}),
    "full fused": (full, cosface, {"chunk": 5, "fused": True}),
    "partial 0.4": (partial, cosface, {"sample_rate": 0.4, "chunk": 5}),
    "partial sub-centers": (partial, arcface, {"sample_rate": 0.3, "sub_centers": 2}),
    "partial 1.0": (partial, arcface, {"sample_rate": 1.0}),
}


class Net(nn.Module):
    embedding = D

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(D, INPUTS, generator=draw, dtype=torch.float64) * 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images @ self.weight.T


def train(variant: str, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Losses, and the backbone and this rank's centers after a few steps of SGD."""
    classifiers, heads, options = VARIANTS[variant]
    net = Net()
    classifier = classifiers.build(
        backbone=net, classes=C, head=heads.build(), ranks=ranks, seed=2, **options
    )
    classifier.double()  # Far apart, so that rounding does not move a cosine across a threshold.
    backbone = DistributedDataParallel(net) if ranks.world > 1 else net
    groups = [list(net.parameters()), list(classifier.parameters())]
    optimizer = torch.optim.SGD(sum(groups, []), lr=0.1, momentum=0.9, weight_decay=5e-4)
    sampler = ClassSampler(C, options.get("sample_rate", 1.0), seed=2, rows=shard(C, ranks))
    draw = torch.Generator().manual_seed(9)
    losses, share = [], slice(ranks.rank * B // ranks.world, (ranks.rank + 1) * B // ranks.world)
    for step in range(STEPS):
        images, labels = (
            torch.randn(B, INPUTS, generator=draw).double(),
            torch.randint(C, (B,), generator=draw),
        )
        optimizer.zero_grad()
        classifier.before_step(0.1)
        sample = torch.from_numpy(sampler(labels.numpy(), 0, step))
        loss = classifier(backbone, images[share], labels[share], sample)
        loss.backward()
        optimizer.step()
        classifier.after_step(TAKEN)
        losses.append(loss.detach())
    gradient = net.weight.grad
    assert gradient is not None
    return {
        "losses": torch.stack(losses),
        "backbone": net.weight.detach(),
        "gradient": gradient,
        "centers": classifier.weight.detach(),
    }


def main(folder: str, rank: int, ports: list[int]) -> None:
    """A run of three ranks, then one of two, in the same processes.

    Starting a process costs more than all the training.
    """
    for world, port in zip((3, 2), ports, strict=True):
        if rank < world:
            os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "MASTER_PORT": str(port)}
            with ranks_of_this_run(torch.device("cpu")) as ranks:
                torch.save(
                    {name: train(name, ranks) for name in VARIANTS},
                    Path(folder) / f"{world}-{rank}.pt",
                )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), [int(port) for port in sys.argv[3:]])
