"""Measures the update of a class pool (plan, features of the other slots, commit).

python -m scripts.bench.pool --identities 617970 --size 61797 --samples 384
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from recognition.classifiers._pool import ClassPool
from scripts._tables import show_figures
from tools._cli import command_parser, run_command


def run(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pool = ClassPool(options.size, options.identities, options.embedding)
    features = torch.nn.functional.normalize(torch.randn(options.samples, options.embedding))

    times = []
    for _ in range(options.updates):
        labels = torch.randint(options.identities, (options.samples,))
        start = time.perf_counter()
        plan = pool.plan(labels)
        pool.other_features(plan, features)
        pool.commit(plan, features)
        times.append(time.perf_counter() - start)
    steady = sorted(times[options.updates // 3 :])  # before, the pool fills for the first time
    figures = {
        "median_ms": statistics.median(steady) * 1e3,
        "tenth_ms": steady[len(steady) // 10] * 1e3,
    }
    show_figures(figures)
    return {**vars(options), **figures}


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("scripts.bench.pool", __doc__)
    for name, default, text in (
        ("identities", 617970, "identities of the training set"),
        ("size", 61797, "columns of the pool"),
        ("samples", 384, "identities that one update brings"),
        ("embedding", 512, "numbers per embedding"),
        ("updates", 600, "updates; the first third is not counted"),
        ("threads", 2, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
