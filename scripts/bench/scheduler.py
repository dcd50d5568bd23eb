"""Cost of one step(float) of our schedulers beside torch's StepLR.step(), from step 10^2 to 10^7.

Blocks of steps alternate between the two in one process; the figures are medians of CPU time. Also
the size of the state (as JSON), which must not grow with the steps.

    python -m scripts.bench.scheduler [--longest 7] [--json]
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR

from fastface.schedulers import FastFaceLR, LossScheduler, MovingHaarLR

BLOCK, ROUNDS = 2000, 15
STEPS = 10**7
SCHEDULERS: dict[str, Callable[[Optimizer], LossScheduler]] = {
    "FastFaceLR": lambda optimizer: FastFaceLR(optimizer, STEPS),
    "FastFaceLR.for_horizon": lambda optimizer: FastFaceLR.for_horizon(optimizer, STEPS),
    "MovingHaarLR(4000)": lambda optimizer: MovingHaarLR(optimizer, 4000),
}


def make_optimizer() -> Optimizer:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)


def time_ours(scheduler: LossScheduler, losses: list[float]) -> float:
    step = scheduler.step
    start = time.process_time()
    for loss in losses:
        step(loss)
    return (time.process_time() - start) / len(losses)


def time_torch(scheduler: StepLR) -> float:
    step = scheduler.step
    start = time.process_time()
    for _ in range(BLOCK):
        step()
    return (time.process_time() - start) / BLOCK


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--longest", type=int, default=7, help="measure up to step 10^this")
    parser.add_argument("--json", action="store_true", help="one JSON line last")
    options = parser.parse_args()
    generator = random.Random(0)
    losses = [10.0 + generator.gauss(0.0, 0.8) for _ in range(BLOCK)]
    optimizer = make_optimizer()
    baseline = StepLR(optimizer, step_size=10**5)
    optimizer.step()  # or StepLR warns of the wrong order
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, make in SCHEDULERS.items():
        scheduler = make(make_optimizer())
        figures[name] = {}
        for power in range(2, options.longest + 1):
            while scheduler.last_epoch + BLOCK <= 10**power - BLOCK * ROUNDS:
                time_ours(scheduler, losses)
            while scheduler.last_epoch < 10**power - BLOCK * ROUNDS:
                scheduler.step(10.0)
            while scheduler.last_epoch < min(
                10**power, 1000
            ):  # too early to end at the power: begin there instead
                scheduler.step(10.0)
            pairs = [(time_ours(scheduler, losses), time_torch(baseline)) for _ in range(ROUNDS)]
            row = {
                "microseconds": 1e6 * statistics.median(ours for ours, _ in pairs),
                "of_StepLR": statistics.median(ours / theirs for ours, theirs in pairs),
                "state_bytes": len(json.dumps(scheduler.state_dict())),
            }
            figures[name][f"1e{power}"] = row
            print(
                f"{name:>23} near step 1e{power}: {row['microseconds']:.2f} µs, "
                f"{row['of_StepLR']:.2f} × StepLR.step(), state {row['state_bytes']} bytes",
                flush=True,
            )
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
