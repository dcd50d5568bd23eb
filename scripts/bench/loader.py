"""How near the loader comes to the decoder, and how far from the usual recipe, side by side in one
run.

    python -m scripts.bench.loader --data PATH [--size 112] [--rounds 20] [--images 1536] [--json]
    python -m scripts.bench.loader --data PATH --memory 3    resident MB and open descriptors after
    each epoch (Linux)

Per round, alternating, on the same images drawn anew, images per second of CPU time (all threads of
a process), so that other work on the machine does not count; many short rounds, since a shared
machine's speed changes within a second:
  decode    cv2.imdecode in a loop over bytes already in memory
  loader    this project's Loader, one decode thread: record file -> uint8 batch (B,3,H,W)
  inline    the same without a thread
  recipe    Dataset -> PIL decode -> flip -> ToTensor -> Normalize -> DataLoader, in the main
  process
and by the clock over all cores `threads` (the Loader) against `workers` (the recipe's DataLoader)
and `processes` (our decode in DataLoader workers). Images/s are medians; ratios are medians of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data.decode import decode
from data.faces import open_faces
from data.loader import Loader
from data.order import EpochOrder, shuffled
from data.types import FaceSet

BATCH = 64


class Recipe(Dataset[tuple[torch.Tensor, int]]):
    """What most training code does."""

    def __init__(self, faces: FaceSet, indices: np.ndarray) -> None:
        self.faces, self.indices = faces, indices
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        index = int(self.indices[row])
        image = Image.open(io.BytesIO(self.faces.read(index))).convert("RGB")
        return self.transform(image), int(self.faces.labels[index])


class Decoded(Recipe):
    """The same with our decoder and no transform: uint8 (H,W,3)."""

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        index = int(self.indices[row])
        return torch.from_numpy(decode(self.faces.read(index), 112)), int(self.faces.labels[index])


def rate(images: int, work: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return images / (clock() - began)


def drain(batches: object) -> None:
    for _ in batches:  # type: ignore[attr-defined]
        pass


def measure(faces: FaceSet, size: int, rounds: int, images: int) -> dict[str, list[float]]:
    count = min(images, len(faces)) // BATCH * BATCH
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        indices = shuffled(len(faces), seed=0, epoch=number)[:count]
        encoded = [np.frombuffer(faces.read(index), np.uint8) for index in indices.tolist()]

        def bare(encoded: list[np.ndarray] = encoded) -> None:
            for one in encoded:
                cv2.imdecode(one, cv2.IMREAD_COLOR_RGB)

        def loader(threads: int, indices: np.ndarray = indices) -> None:
            drain(
                Loader(
                    faces, batch_size=BATCH, size=size, seed=0, threads=threads, channels_last=True,
                    order=EpochOrder(lambda epoch: indices, count),
                )
            )  # fmt: skip

        def recipe(kind: type[Recipe], workers: int, indices: np.ndarray = indices) -> None:
            drain(DataLoader(kind(faces, indices), BATCH, num_workers=workers))

        jobs: dict[str, Callable[[], object]] = {
            "decode": bare,
            "loader": lambda: loader(1),
            "inline": lambda: loader(0),
            "recipe": lambda: recipe(Recipe, 0),
            "threads": lambda: loader(cores),
            "processes": lambda: recipe(Decoded, cores),
            "workers": lambda: recipe(Recipe, cores),
        }
        order = list(jobs) if number % 2 == 0 else list(jobs)[::-1]
        for name in order:
            clock = (
                time.perf_counter
                if name in ("threads", "processes", "workers")
                else time.process_time
            )
            rates.setdefault(name, []).append(rate(count, jobs[name], clock))
        print(f"round {number}: " + "  ".join(f"{name} {rates[name][-1]:.0f}/s" for name in jobs))
    return rates


def held() -> tuple[float, int]:
    """(resident MB, open descriptors) of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))


def memory(path: str, size: int, epochs: int) -> dict[str, object]:
    """What is held after each epoch of one Loader, then descriptors after 100 further openings of
    the set."""
    loader = Loader(
        open_faces(path),
        batch_size=BATCH,
        size=size,
        seed=0,
        threads=len(os.sched_getaffinity(0)),
        channels_last=True,
    )
    megabytes = []
    for _ in range(epochs):
        drain(loader)
        megabytes.append(round(held()[0], 1))
    before = held()[1]
    for _ in range(100):
        open_faces(path)
    return {
        "mb_after_epochs": megabytes,
        "descriptors": before,
        "descriptors_after_100_openings": held()[1],
    }


def ratio(rates: dict[str, list[float]], a: str, b: str) -> float:
    return statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))


def compare(faces: FaceSet, size: int, rounds: int, images: int) -> dict[str, object]:
    """Medians of the rates and of their ratios."""
    for index in range(
        len(faces)
    ):  # the files into the page cache, drawings into memory: the disk is not measured
        faces.read(index)
    rates = measure(faces, size, rounds, images)
    medians: dict[str, object] = {
        name: round(statistics.median(values), 1) for name, values in rates.items()
    }
    return medians | {
        "images": len(faces),
        "loader_to_decode": round(ratio(rates, "loader", "decode"), 3),
        "inline_to_decode": round(ratio(rates, "inline", "decode"), 3),
        "loader_to_recipe": round(ratio(rates, "loader", "recipe"), 2),
        "threads_to_processes": round(ratio(rates, "threads", "processes"), 2),
        "threads_to_workers": round(ratio(rates, "threads", "workers"), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="synthetic:identities=100,images=20", help="any face set")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=1536, help="in a round")
    parser.add_argument(
        "--memory", type=int, metavar="EPOCHS", help="show what is held after each epoch, no rates"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        faces = open_faces(options.data)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.memory is not None:
        result = memory(options.data, options.size, options.memory)
    else:
        result = compare(faces, options.size, options.rounds, options.images)
    for name, value in result.items():
        print(f"{name:22}{value}")
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
