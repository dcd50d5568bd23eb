"""Measures the methods of `tools.clean` beside the bare matrix products that they need.

    python -m scripts.bench.clean                                        a tenth of MS1MV3
    python -m scripts.bench.clean --images 50000 --identities 900 --test 5000

The vectors are random around random centers. They lie in a file as float16 and are memory-mapped,
as those of a set are. The bare products have the same sizes, with float32 vectors in memory, and
nothing is read from their results. Each is measured in a process of its own. The ratio is that of
the processor's time, in which other programs do not count. Memory is the peak above what the
process held before; labels, digests and results count.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.options import Count
from eval.cleaning.centers import robust_centers
from eval.cleaning.duplicates import NEIGHBORS, find_duplicates
from eval.cleaning.merge import find_merges
from eval.cleaning.noise import find_noise
from eval.cleaning.overlap import find_overlap, mean_centers
from eval.cleaning.prune import true_probabilities
from eval.cleaning.split import find_splits
from eval.embed import normalized
from eval.search import ENTRIES, PROBES, top_matches
from recognition.memory import peak_bytes, resident_bytes
from scripts._tables import TableRow, show_table
from scripts.bench._measure import in_own_process
from tools._cli import command

BLOCK = 4096
SPREAD = 1.0  # of the images of an identity, in lengths of its center
NEAR = 0.98
METHODS = ("nearest center alone", "noise", "merge", "split", "duplicates", "overlap", "prune")


def write_vectors(folder: Path, images: int, identities: int, dimension: int, test: int) -> None:
    """Vectors, labels and digests of a training set, and vectors and labels of a test set."""
    rng = np.random.default_rng(0)
    for name, count, people in (("training", images, identities), ("test", test, test // 2)):
        centers = rng.standard_normal((people, dimension), dtype=np.float32)
        labels = np.sort(np.r_[np.arange(people), rng.integers(0, people, count - people)])
        vectors = np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.dtype(np.float16), (count, dimension)
        )
        for start in range(0, count, BLOCK):
            here = slice(start, start + BLOCK)
            drawn = rng.standard_normal((len(labels[here]), dimension), dtype=np.float32)
            vectors[here] = normalized(centers[labels[here]] + SPREAD * drawn)
        np.save(folder / f"{name}_labels.npy", labels)
    np.save(folder / "digests.npy", rng.integers(0, 256, (images, 16), np.uint8))


def method(folder: str, name: str) -> dict[str, float]:
    """One method, from the files."""
    before = resident_bytes()
    vectors, labels = _read(folder, "training")

    def duplicates() -> None:
        digests = np.load(f"{folder}/digests.npy", mmap_mode="r")
        centers = robust_centers(vectors, labels, int(labels.max()) + 1)
        find_duplicates(vectors, labels, digests, centers, NEAR)

    def overlap() -> None:
        own, others = (mean_centers(*_read(folder, which))[0] for which in ("training", "test"))
        find_overlap(own, others)

    def nearest() -> None:
        every = np.arange(int(labels.max()) + 1)
        drawn = np.random.default_rng(0).standard_normal((len(every), vectors.shape[1]))
        centers = normalized(drawn).astype(np.float32)
        top_matches(vectors, centers, 1, other_than=(labels, every))

    tasks: dict[str, Callable[[], Any]] = {
        "nearest center alone": nearest,
        "noise": lambda: find_noise(vectors, labels),
        "merge": lambda: find_merges(vectors, labels),
        "split": lambda: find_splits(vectors, labels),
        "duplicates": duplicates,
        "overlap": overlap,
        "prune": lambda: true_probabilities(vectors, labels),
    }
    return _measured(tasks[name], before)


def products(folder: str, name: str) -> dict[str, float]:
    """The products that a method needs, of vectors in memory."""
    vectors, labels = _read(folder, "training")
    dimension, counts = vectors.shape[1], np.bincount(labels)
    images, identities, people = len(labels), len(counts), int(_read(folder, "test")[1].max()) + 1
    # NumPy computes half of a product of vectors with themselves, so there are two sets of them.
    rng = np.random.default_rng(0)
    probes, entries = rng.standard_normal((2, max(PROBES, ENTRIES), dimension), dtype=np.float32)

    def multiply(rows: int, columns: int) -> None:
        memory = np.empty((PROBES, ENTRIES), np.float32)
        for row in range(0, rows, PROBES):
            high = min(PROBES, rows - row)
            for column in range(0, columns, ENTRIES):
                wide = min(ENTRIES, columns - column)
                np.matmul(probes[:high], entries[:wide].T, out=memory[:high, :wide])

    def within(neighbors: int) -> None:
        for count in counts.tolist():
            own, others = probes[:count], entries[: neighbors * count]
            _ = own @ own.T
            _ = own @ others.T

    def duplicates() -> None:
        multiply(identities, identities)
        within(NEIGHBORS)

    tasks: dict[str, Callable[[], Any]] = {
        "nearest center alone": lambda: multiply(images, identities),
        "noise": lambda: multiply(images, identities),
        "merge": lambda: multiply(identities, identities),
        "split": lambda: within(0),
        "duplicates": duplicates,
        "overlap": lambda: multiply(people, identities),
        "prune": lambda: multiply(images, identities),
    }
    return _measured(tasks[name], resident_bytes())


def _read(folder: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.load(f"{folder}/{name}.npy", mmap_mode="r")
    return vectors, np.load(f"{folder}/{name}_labels.npy")


def _measured(task: Callable[[], Any], before: int) -> dict[str, float]:
    clocks = time.perf_counter(), time.process_time()
    task()
    return {
        "seconds": time.perf_counter() - clocks[0],
        "CPU seconds": time.process_time() - clocks[1],
        "peak MB": (peak_bytes() - before) / 1e6,
    }


def run(
    *,
    images: Count = 517_951,
    identities: Count = 9_300,
    dimension: Count = 512,
    test: Count = 13_233,
    rounds: Count = 1,
) -> dict[str, Any]:
    """Compare each method with the products alone.

    images: vectors of the training set.
    identities: people in the training set.
    dimension: numbers in a vector.
    test: vectors of the test set, two per person.
    rounds: how often both are measured, in turn; the fastest counts.
    """
    if identities < 20 or images < identities or test < 40:
        raise ValueError("expected 20 identities or more, as many images, and 40 test images")
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder), images, identities, dimension, test)
        return {"rows": show_table(_row(folder, name, rounds) for name in METHODS)}


def _row(folder: str, name: str, rounds: int) -> TableRow:
    tries = [
        (in_own_process(products, folder, name), in_own_process(method, folder, name))
        for _ in range(rounds)
    ]
    bare, own = (min(side, key=lambda one: one["CPU seconds"]) for side in zip(*tries, strict=True))
    ratio = own["CPU seconds"] / bare["CPU seconds"]
    return {"method": name, "products, CPU s": bare["CPU seconds"], **own, "ratio": ratio}


main = command(run)
