"""Time of one class pool update (plan, features, commit), on two cores.

python -m scripts.bench.pool --identities 617970 --size 61797 --samples 384
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from recognition.classifiers._pool import ClassPool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identities", type=int, default=617970)
    parser.add_argument("--size", type=int, default=61797)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pool = ClassPool(args.size, args.identities, args.embedding)
    features = torch.nn.functional.normalize(torch.randn(args.samples, args.embedding))
    seconds: list[float] = []
    for _ in range(args.updates):
        labels = torch.randint(args.identities, (args.samples,))
        began = time.perf_counter()
        plan = pool.plan(labels)
        pool.other_features(plan, features)
        pool.commit(plan, features)
        seconds.append(time.perf_counter() - began)
    steady = sorted(seconds[args.updates // 3 :])  # the pool is filling, or full, and turned over
    figures = {
        "median_ms": statistics.median(steady) * 1e3,
        "tenth_ms": steady[len(steady) // 10] * 1e3,
    }
    print(
        f"{args.samples} samples into {args.size} columns: median {figures['median_ms']:.3f} ms, fastest tenth below"
        f" {figures['tenth_ms']:.3f} ms, {args.threads} threads"
    )
    if args.json:
        print(json.dumps({**vars(args), **figures}))


if __name__ == "__main__":
    main()
