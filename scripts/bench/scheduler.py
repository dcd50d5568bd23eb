"""Measures step(float) of our schedulers beside torch's StepLR.step(), near steps 10² to 10⁷.

    python -m scripts.bench.scheduler --longest 7

Blocks of steps alternate between the two in one process. Figures are medians of CPU time. The table
also shows the size of the state as JSON, because it must not grow with the steps.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR

from data.options import Count
from fastface.schedulers import FastFaceLR, LossScheduler, MovingHaarLR
from scripts._tables import show_table
from scripts.bench._measure import median_ratio
from tools._cli import command

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
    """CPU seconds of one step with each of the losses."""
    step = scheduler.step
    start = time.process_time()
    for loss in losses:
        step(loss)
    return time.process_time() - start


def time_torch(scheduler: StepLR) -> float:
    """CPU seconds of BLOCK steps."""
    step = scheduler.step
    start = time.process_time()
    for _ in range(BLOCK):
        step()
    return time.process_time() - start


def advance(scheduler: LossScheduler, step: int, losses: list[float]) -> None:
    """Step until `step` is reached, whole blocks of losses first."""
    while scheduler.last_epoch + BLOCK <= step:
        time_ours(scheduler, losses)
    while scheduler.last_epoch < step:
        scheduler.step(10.0)


def compare(longest: int) -> Iterator[dict[str, Any]]:
    """One row per scheduler and power of ten."""
    generator = random.Random(0)
    losses = [10.0 + generator.gauss(0.0, 0.8) for _ in range(BLOCK)]
    optimizer = make_optimizer()
    baseline = StepLR(optimizer, step_size=10**5)
    optimizer.step()  # without it StepLR warns of a wrong order
    for name, make in SCHEDULERS.items():
        scheduler = make(make_optimizer())
        for power in range(2, longest + 1):
            # The measured blocks end at the power, or begin there (or at step 1000) near the start.
            advance(scheduler, max(10**power - BLOCK * ROUNDS, min(10**power, 1000)), losses)
            pairs = [(time_ours(scheduler, losses), time_torch(baseline)) for _ in range(ROUNDS)]
            ours, theirs = zip(*pairs, strict=True)
            yield {
                "scheduler": name,
                "near step": f"1e{power}",
                "µs per step": 1e6 * statistics.median(ours) / BLOCK,
                "× StepLR": median_ratio(ours, theirs),
                "state, bytes": len(json.dumps(scheduler.state_dict())),
            }


def run(*, longest: Count = 7) -> dict[str, Any]:
    """Compare the schedulers.

    longest: measure up to step 10^LONGEST.
    """
    return {"rows": show_table(compare(longest))}


main = command(run)
