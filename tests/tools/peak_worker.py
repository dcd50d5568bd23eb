"""Train a few steps of a config on random images, and print the peak memory in bytes."""

from __future__ import annotations

import sys

import numpy as np
import torch

from data.types import Batch
from recognition import experiment, trainer
from recognition.distributed import Ranks
from recognition.memory import peak_bytes
from recognition.parse import load_config


class Faces:
    """Twenty images each of `num_classes` identities; none can be read."""

    def __init__(self, classes: int) -> None:
        self.num_classes = classes
        self.labels = np.arange(classes, dtype=np.int64).repeat(20)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        raise OSError(index)

    def describe(self, index: int) -> str:
        return str(index)


def main(path: str, classes: int) -> None:
    config = load_config(path)
    size, batch = config.data.size, config.optim.batch_size
    parts = experiment.build_parts(config, Faces(classes), torch.device("cpu"), Ranks())
    progress = trainer.Progress()
    for step in range(3):
        labels = torch.randint(classes, (config.optim.accumulation, batch))
        draw = parts.loader.draw
        sample = torch.from_numpy(draw(labels.numpy(), 0, step)) if draw else None
        batches = [
            Batch(
                torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8),
                own,
                sample if micro == 0 else None,
            )
            for micro, own in enumerate(labels)
        ]
        trainer.optimizer_step(config, parts, batches, progress)
    print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
