"""One rank of test_semi_siamese.py: trains a small network in every variant and writes its results.

python semi_siamese_worker.py FOLDER RANK PORT_OF_3 PORT_OF_2
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.parts import find_part, part_names
from recognition.classifiers.semi_siamese import SemiSiameseClassifier, build
from recognition.distributed import Ranks, ranks_of_this_run

CLASSES, QUEUE, PAIRS, DEPTH, PIXELS = 20, 11, 6, 8, 4
DECAY, SCALE, RATE = 0.9, 16.0, 0.1
VARIANTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "SST": ("cosface", 200, {}),
    "SST, one way": ("arcface", 60, {"swap": False}),
    "MASST": ("cosface", 200, {"agents": 3}),
    **{head: (head, 4, {}) for head in part_names("recognition.heads")},
}
TAKEN = torch.tensor(True)


class Net(nn.Module):
    embedding = DEPTH

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * PIXELS**2, 16), nn.PReLU(), nn.Linear(16, DEPTH)
        )
        self.double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.layers(images)
        return embeddings


def batches(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images (2, PAIRS, …) and labels (PAIRS,) of random identities; some come twice in a step."""
    draw = torch.Generator().manual_seed(3)
    faces = torch.randn(CLASSES, 3, PIXELS, PIXELS, generator=draw, dtype=torch.float64)
    for _ in range(steps):
        noise = torch.randn(2, PAIRS, *faces.shape[1:], generator=draw, dtype=torch.float64)
        labels = torch.randint(CLASSES, (PAIRS,), generator=draw)
        yield faces[labels] + noise / 2, labels


def make(net: nn.Module, ranks: Ranks, head: str, **options: Any) -> SemiSiameseClassifier:
    classifier = build(
        backbone=net,
        classes=CLASSES,
        head=find_part("recognition.heads", head).build(scale=SCALE),
        ranks=ranks,
        batch_size=2 * PAIRS // ranks.world,
        seed=4,
        ema_decay=DECAY,
        chunk=5,
        **{"size": QUEUE, **options},
    ).double()
    # The queue's first features, as float64 of length 1.
    classifier.queue.features.copy_(nn.functional.normalize(classifier.queue.features))
    return classifier


def flat(net: nn.Module, *, gradient: bool = False) -> torch.Tensor:
    tensors = [p.grad if gradient else p.detach() for p in net.parameters()]
    return torch.cat([tensor.flatten().clone() for tensor in tensors if tensor is not None])


def train(variant: str, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Losses and gradients of all steps, and what there is at the end."""
    head, steps, options = VARIANTS[variant]
    net = Net()
    classifier = make(net, ranks, head, **options)
    forward = DistributedDataParallel(net) if ranks.world > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    losses, gradients = [], []
    for images, labels in batches(steps):
        own = images.chunk(ranks.world, 1)[ranks.rank].flatten(0, 1)
        people = labels.chunk(ranks.world)[ranks.rank].repeat(2)
        classifier.before_step(RATE)
        loss = classifier(forward, own, people)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        classifier.after_step(TAKEN)
        losses.append(loss.detach())
        gradients.append(flat(net, gradient=True))
    return {
        "losses": torch.stack(losses),
        "gradients": torch.stack(gradients),
        "net": flat(net),
        "agents": torch.stack([flat(agent) for agent in classifier.agents]),
        "features": classifier.queue.features,
        "identities": classifier.queue.identities,
        "cursor": classifier.queue.cursor,
    }


def main(folder: str, rank: int, ports: list[str]) -> None:
    for world, port in zip((3, 2), ports, strict=True):
        if rank < world:
            os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "MASTER_PORT": port}
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            with ranks_of_this_run(torch.device("cpu")) as ranks:
                results = {name: train(name, ranks) for name in VARIANTS}
                torch.save(results, Path(folder) / f"{world}-{rank}.pt")
    # Leave without tearing Python down: a thread of gloo may still hold tensors.
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
