"""Measures the loader in images/s, beside bare decoding and beside the usual recipe.

    python -m scripts.bench.loader --data PATH
    python -m scripts.bench.loader --data PATH --memory 3  memory and descriptors after each epoch

Each round draws different images, and all jobs of a round use the same ones. The first four jobs
count the CPU time of all threads of the process, so that other work on the machine does not matter:

    decode     cv2.imdecode in a loop over bytes that are in memory
    loader     our Loader with one decode thread: record file -> uint8 batch (B,3,H,W)
    inline     our Loader without a thread
    recipe     Dataset -> PIL -> flip -> ToTensor -> Normalize -> DataLoader in the main process

The other three jobs use all cores and count wall-clock time:

    threads    our Loader
    processes  our decoder in the workers of a DataLoader
    workers    the recipe in the workers of a DataLoader

Rates are medians over rounds. Ratios are medians of the ratios within a round.
"""

import io
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data.decode import decode
from data.faces import open_faces
from data.loader import Loader
from data.options import Count, CountOrZero
from data.order import EpochOrder, shuffled
from data.types import FaceSet
from recognition.memory import resident_bytes
from scripts._tables import show_figures
from scripts.bench._measure import median_ratio, seconds
from tools._cli import command

BATCH = 64
RATIOS = (
    ("loader", "decode"),
    ("inline", "decode"),
    ("loader", "recipe"),
    ("threads", "processes"),
    ("threads", "workers"),
)


class Recipe(Dataset[tuple[torch.Tensor, int]]):
    """What most training code does."""

    def __init__(self, faces: FaceSet, indices: np.ndarray) -> None:
        self.faces, self.indices = faces, indices
        normalize = transforms.Normalize([0.5] * 3, [0.5] * 3)
        steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
        self.transform: Callable[[Image.Image], torch.Tensor] = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        index = int(self.indices[row])
        return self.image(self.faces.read(index)), int(self.faces.labels[index])

    def image(self, encoded: bytes) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(encoded)).convert("RGB"))


class Decoded(Recipe):
    """The same with our decoder and no transform: uint8 (H,W,3)."""

    def image(self, encoded: bytes) -> torch.Tensor:
        return torch.from_numpy(decode(encoded, 112))


def drain(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def make_loader(faces: FaceSet, size: int, threads: int, **options: Any) -> Loader:
    return Loader(faces, batch_size=BATCH, size=size, seed=0, threads=threads, **options)


def jobs_for(
    faces: FaceSet, size: int, indices: np.ndarray
) -> dict[str, tuple[Callable[[], None], Callable[[], float]]]:
    """The work on these images and the clock of each job."""
    encoded = [np.frombuffer(faces.read(index), np.uint8) for index in indices.tolist()]
    cores = len(os.sched_getaffinity(0))

    def decode_all() -> None:
        for image in encoded:
            cv2.imdecode(image, cv2.IMREAD_COLOR_RGB)

    def load(threads: int) -> None:
        drain(make_loader(faces, size, threads, order=EpochOrder(lambda _: indices, len(indices))))

    def usual(kind: type[Recipe], workers: int) -> None:
        drain(DataLoader(kind(faces, indices), BATCH, num_workers=workers))

    return {
        "decode": (decode_all, time.process_time),
        "loader": (lambda: load(1), time.process_time),
        "inline": (lambda: load(0), time.process_time),
        "recipe": (lambda: usual(Recipe, 0), time.process_time),
        "threads": (lambda: load(cores), time.perf_counter),
        "processes": (lambda: usual(Decoded, cores), time.perf_counter),
        "workers": (lambda: usual(Recipe, cores), time.perf_counter),
    }


def compare(faces: FaceSet, size: int, rounds: int, images: int) -> dict[str, Any]:
    """Medians of the rates and of their ratios."""
    # Bring the files into the page cache and drawings into memory: the disk is not measured.
    for index in range(len(faces)):
        faces.read(index)

    count = min(images, len(faces)) // BATCH * BATCH
    rates: dict[str, list[float]] = {}
    for epoch in range(rounds):
        indices = shuffled(len(faces), seed=0, epoch=epoch)[:count]
        jobs = list(jobs_for(faces, size, indices).items())
        for name, (work, clock) in jobs if epoch % 2 == 0 else reversed(jobs):
            rates.setdefault(name, []).append(count / seconds(work, clock))
        last = "  ".join(f"{name} {of[-1]:.0f}/s" for name, of in rates.items())
        print(f"round {epoch}: {last}", flush=True)
    medians = {name: statistics.median(of) for name, of in rates.items()}
    ratios = {f"{a}_to_{b}": median_ratio(rates[a], rates[b]) for a, b in RATIOS}
    return {"images": len(faces), **medians, **ratios}


def held(data: str, size: int, epochs: int) -> dict[str, Any]:
    """Memory after each epoch of one Loader, and file descriptors after 100 further openings."""
    loader = make_loader(open_faces(data), size, len(os.sched_getaffinity(0)))
    megabytes = []
    for _ in range(epochs):
        drain(loader)
        megabytes.append(round(resident_bytes() / 1e6, 1))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        open_faces(data)
    return {
        "mb_after_epochs": megabytes,
        "descriptors": before,
        "descriptors_after_100_openings": len(os.listdir("/proc/self/fd")),
    }


def run(
    *,
    data: str = "synthetic:identities=100,images=20",
    size: Count = 112,
    rounds: Count = 20,
    images: Count = 1536,
    memory: CountOrZero = 0,
) -> dict[str, Any]:
    """Compare the jobs on one face set.

    data: any face set.
    size: side of an image in pixels.
    rounds: rounds over all jobs.
    images: images per round.
    memory: show memory and open files after each of this many epochs, instead of rates.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    figures = (
        held(data, size, memory) if memory else compare(open_faces(data), size, rounds, images)
    )
    show_figures(figures)
    return figures


main = command(run)
