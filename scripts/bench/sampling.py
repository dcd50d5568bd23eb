"""Measures what Partial FC's sampling adds to the steps of a training loop.

    python -m scripts.bench.sampling --identities 2059906 --sample-rate 0.3

A loader gives batches to a loop that computes for some milliseconds per step, with and without a
sample for each step. Rounds alternate. `draw` is the time of one draw by itself, in one thread.
"""

import statistics
import time
from typing import Annotated

import cv2
import numpy as np
import torch

from data.loader import Draw, Loader
from data.options import Count, Range
from recognition.classifiers._sample import ClassSampler
from scripts._tables import show_figures
from tools._cli import command

SIZE = 112  # pixels


class Faces:
    """One drawn JPEG, as the image of every identity."""

    def __init__(self, identities: int, images: int) -> None:
        self.num_classes = identities
        draw = np.random.default_rng(0)
        self.labels = draw.integers(0, identities, images)
        pixels = draw.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        self.jpeg = cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (9, 9), 3))[1].tobytes()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self.jpeg

    def describe(self, index: int) -> str:
        return str(index)


def waits(loader: Loader, step_ms: float) -> list[float]:
    """Milliseconds that each step but the first of an epoch waits for its batch."""
    matrix = torch.randn(512, 512)
    found = []
    before = loader.wait_seconds
    for _ in loader:
        found.append((loader.wait_seconds - before) * 1e3)
        end = time.perf_counter() + step_ms / 1e3
        while time.perf_counter() < end:
            matrix @ matrix
        before = loader.wait_seconds
    return found[1:]


def run(
    *,
    identities: Count = 2059906,
    sample_rate: Annotated[float, Range(above=0, at_most=1)] = 0.3,
    batch: Count = 128,
    step_ms: Count = 200,
    steps: Count = 20,
    rounds: Count = 3,
    threads: Count = 2,
) -> dict[str, float]:
    """Time the waits of a loop.

    identities: identities of the training set.
    sample_rate: share of the identities in a sample.
    batch: images per step.
    step_ms: milliseconds that the loop computes per step. R100 at batch 128 takes about as long on
        one good GPU as the default.
    steps: steps per round.
    rounds: rounds with and without samples.
    threads: decode threads, which also draw the samples.
    """
    faces = Faces(identities, batch * steps)
    sampler = ClassSampler(identities, sample_rate, seed=0, rows=range(identities))
    draws = []
    for place in range(5):
        start = time.perf_counter()
        sampler(faces.labels[:batch], 0, place)
        draws.append((time.perf_counter() - start) * 1e3)

    def round_of(draw: Draw | None) -> list[float]:
        loader = Loader(faces, batch_size=batch, size=SIZE, seed=0, threads=threads, draw=draw)
        return waits(loader, step_ms)

    found: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        found["without"] += round_of(None)
        found["with"] += round_of(sampler)
    medians = {name: statistics.median(values) for name, values in found.items()}
    figures = {
        "draw_ms": statistics.median(draws),
        "wait_without_ms": medians["without"],
        "wait_with_ms": medians["with"],
        "added_ms": medians["with"] - medians["without"],
        "added_worst_ms": max(found["with"]) - max(found["without"]),
    }
    show_figures(figures)
    return figures


main = command(run)
