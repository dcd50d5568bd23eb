"""Measures the methods of `tools.clean` beside the bare matrix products that they cannot do without.

    python -m scripts.bench.clean                       a tenth of MS1MV3
    python -m scripts.bench.clean --images 50000 --identities 900

The vectors are random around random centers. They lie in a file as float16 and are memory-mapped,
as those of a set are. The bare products use the same blocks of the same sizes, as float32 in memory;
nothing is read from their results. Each is measured in a process of its own, in turn. The ratio is
that of the processor's time, in which other programs do not count. Memory is the peak above what
the process held before, with labels and digests of all images already in memory.
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
from eval.cleaning.overlap import CANDIDATES, COHORT, find_overlap, mean_centers
from eval.cleaning.prune import true_probabilities
from eval.cleaning.split import find_splits
from eval.embed import normalized
from eval.search import ENTRIES, PROBES
from recognition.memory import peak_bytes, resident_bytes
from scripts._tables import show_table
from scripts.bench._measure import in_own_process
from tools._cli import command

BLOCK = 4096
SPREAD = 0.7  # of the images of an identity, in lengths of its center


def write_vectors(folder: Path, images: int, identities: int, dimension: int, test: int) -> None:
    """Vectors and labels of both sets, block by block."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((identities, dimension), dtype=np.float32)
    for name, count in (("training", images), ("test", test)):
        labels = np.sort(rng.integers(0, identities, count))
        labels[:identities] = np.arange(identities)[: len(labels)]
        labels.sort()
        shape = (count, dimension)
        file = folder / f"{name}.npy"
        vectors = np.lib.format.open_memmap(file, "w+", np.dtype(np.float16), shape)
        for start in range(0, count, BLOCK):
            here = slice(start, start + BLOCK)
            drawn = rng.standard_normal((len(labels[here]), dimension), dtype=np.float32)
            vectors[here] = normalized(centers[labels[here]] + SPREAD * drawn)
        np.save(folder / f"{name}_labels.npy", labels)
        centers = rng.standard_normal((identities, dimension), dtype=np.float32)
    np.save(folder / "digests.npy", rng.integers(0, 256, (images, 16), np.uint8))
