"""Measures the exact search beside the bare float32 matrix products that it cannot do without.

    python -m scripts.bench.search --gallery 1000000 --probes 100
    python -m scripts.bench.search --gallery 517951 --probes 8192     a tenth of MS1MV3

The vectors are random, which is the hardest case: the best entries are spread over all blocks. They
lie in a file and are memory-mapped, as an index is. The bare products use blocks of the same sizes
and vectors in memory; nothing is read from their results. Both are measured in turn, in processes
of their own. The ratio is that of the processor's time, in which other programs do not count.
Memory is the peak above what the process held before.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data.options import Count
from eval.embed import normalized
from eval.search import ENTRIES, PROBES, top_matches
from recognition.memory import peak_bytes, resident_bytes
from scripts._tables import show_table
from scripts.bench._measure import in_own_process
from tools._cli import command


def write_vectors(file: str, count: int, dimension: int) -> None:
    """Random vectors of length 1, block by block."""
    rng = np.random.default_rng(0)
    shape = (count, dimension)
    vectors = np.lib.format.open_memmap(file, "w+", np.dtype(np.float32), shape)
    for start in range(0, count, ENTRIES):
        rows = min(ENTRIES, count - start)
        drawn = rng.standard_normal((rows, dimension), dtype=np.float32)
        vectors[start : start + rows] = normalized(drawn)


def products(file: str, count: int, top: int) -> dict[str, float]:
    """Only the products of all blocks, from memory."""
    gallery = np.load(file)
    probes = gallery[:count]
    memory = np.empty((min(PROBES, count), ENTRIES), np.float32)
    blocks = [gallery[at : at + ENTRIES] for at in range(0, len(gallery), ENTRIES)]
    clocks, before = (time.perf_counter(), time.process_time()), resident_bytes()
    for start in range(0, count, PROBES):
        block = probes[start : start + PROBES]
        for entries in blocks:
            np.matmul(block, entries.T, out=memory[: len(block), : len(entries)])
    return _figures(clocks, before)


def search(file: str, count: int, top: int) -> dict[str, float]:
    """The search, from the file."""
    gallery = np.load(file, mmap_mode="r")
    probes = gallery[:count]
    clocks, before = (time.perf_counter(), time.process_time()), resident_bytes()
    top_matches(probes, gallery, top)
    return _figures(clocks, before)


def _figures(clocks: tuple[float, float], before: int) -> dict[str, float]:
    return {
        "seconds": time.perf_counter() - clocks[0],
        "CPU seconds": time.process_time() - clocks[1],
        "peak MB": (peak_bytes() - before) / 1e6,
    }


def run(
    *,
    gallery: Count = 1_000_000,
    probes: Count = 100,
    dimension: Count = 512,
    top: Count = 5,
    rounds: Count = 3,
) -> dict[str, Any]:
    """Compare the search with the products alone.

    gallery: vectors to search in.
    probes: vectors to search for.
    dimension: numbers in a vector.
    top: entries to find for each probe.
    rounds: how often both are measured; the fastest counts.
    """
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "vectors.npy")
        write_vectors(file, gallery, dimension)
        for _ in range(rounds):
            for work in (products, search):
                found = in_own_process(work, file, probes, top)
                old = best.setdefault(work.__name__, found)
                best[work.__name__] = min(old, found, key=lambda one: one["CPU seconds"])
    bare = best["products"]["CPU seconds"]
    rows = ({"work": name, **one, "ratio": one["CPU seconds"] / bare} for name, one in best.items())
    return {"rows": show_table(rows)}


main = command(run)
