"""Measures the update of a class pool (plan, features of the other slots, commit).

python -m scripts.bench.pool --identities 617970 --size 61797 --samples 384
"""

import statistics
import time

import torch

from data.options import Count
from recognition.classifiers._pool import ClassPool
from scripts._tables import show_figures
from tools._cli import command


def run(
    *,
    identities: Count = 617970,
    size: Count = 61797,
    samples: Count = 384,
    embedding: Count = 512,
    updates: Count = 600,
    threads: Count = 2,
) -> dict[str, float]:
    """Time the updates of one pool.

    identities: identities of the training set.
    size: columns of the pool.
    samples: identities that one update brings, at most as many as the pool has columns.
    embedding: numbers per embedding.
    updates: number of updates, of which the first third is not counted.
    threads: threads of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pool = ClassPool(size, identities, embedding)
    features = torch.nn.functional.normalize(torch.randn(samples, embedding))
    times = []
    for _ in range(updates):
        labels = torch.randint(identities, (samples,))
        start = time.perf_counter()
        plan = pool.plan(labels)
        pool.other_features(plan, features)
        pool.commit(plan, features)
        times.append(time.perf_counter() - start)
    steady = sorted(times[updates // 3 :])  # before, the pool fills for the first time
    figures = {
        "median_ms": statistics.median(steady) * 1e3,
        "tenth_ms": steady[len(steady) // 10] * 1e3,
    }
    show_figures(figures)
    return figures


main = command(run)
