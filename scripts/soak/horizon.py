"""Runs FastFaceLR.for_horizon on short noisy runs: does it find the published decays?

    python -m scripts.soak.horizon --horizon 20232 --noise 0.8 --seeds 20

The published decays are those of the published constants on the long run. The curve of a log is
averaged down to `--horizon` steps, and each seed adds other noise to it. A constant loss and a
loss that falls steadily get the same noise.

The bar for every seed: at least 4 of the 6 published decays, each within 8 % of the run; no decay
in the first 15 % of the run; a decay on the constant loss, and none on the falling one. Exit code
1: the bar is missed.
"""

import math
import operator
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from data.options import Count, NonNegative, ShareBelowOne
from fastface.replay import every_step, read_losses, replay
from fastface.schedulers import FastFaceLR
from scripts._tables import show_table
from tools._cli import Failed, command

FIXTURE = Path(__file__).parents[2] / "tests/fastface/fixtures/ms1mv3_r100_means.csv.gz"

# What `python -m fastface replay LOG --scheduler fastface --total-steps 202325` finds on the whole
# log ms1mv3_r100.csv.gz.
PUBLISHED_STEPS = 202_325
PUBLISHED_DECAYS = tuple(
    step / PUBLISHED_STEPS for step in (94273, 135930, 156072, 175312, 185429, 195546)
)

Make = Callable[[Optimizer, int], FastFaceLR]


@dataclass(frozen=True)
class Noise:
    """Normal noise. correlation: that of neighboring steps, 0 for white noise."""

    deviation: float
    correlation: float = 0.0

    def values(self, count: int, seed: int) -> list[float]:
        generator = random.Random(seed)
        values = [generator.gauss(0.0, self.deviation)]
        fresh = self.deviation * math.sqrt(1.0 - self.correlation**2)
        for _ in range(count - 1):
            values.append(self.correlation * values[-1] + generator.gauss(0.0, fresh))
        return values


@dataclass(frozen=True)
class Verdict:
    """The findings over all seeds."""

    least_found: int  # of the published decays
    mean_found: float
    early: int  # seeds with a decay in the first 15 % of the run
    constant_least: int  # decays on the constant loss
    falling_most: int  # decays on the falling loss

    @property
    def passed(self) -> bool:
        return (
            self.least_found >= 4
            and not self.early
            and self.constant_least >= 1
            and not self.falling_most
        )


def compress(path: str | Path, horizon: int) -> list[float]:
    """The log's curve in `horizon` steps, each of which is the mean of a stretch of the log."""
    losses = [loss for _, loss in every_step(read_losses(path))]
    edges = [round(step * len(losses) / horizon) for step in range(horizon + 1)]
    return [sum(losses[start:end]) / (end - start) for start, end in pairwise(edges)]


def decays(curve: list[float], noise: Noise, seed: int, make: Make) -> list[float]:
    """When the learning rate changes on a curve with noise, as fractions of the run."""
    rows = list(enumerate(map(operator.add, curve, noise.values(len(curve), seed))))
    scheduler = make(SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), len(curve))
    return [change.step / len(curve) for change in replay(rows, scheduler).changes]


def found(decayed_at: list[float], within: float = 0.08) -> int:
    """How many published decays have a separate decay within that fraction of the run."""
    left, count = sorted(decayed_at), 0
    for published in PUBLISHED_DECAYS:
        near = [at for at in left if abs(at - published) <= within]
        if near:
            left.remove(near[0])
            count += 1
    return count


def judge(
    curve: list[float], noise: Noise, seeds: int, make: Make = FastFaceLR.for_horizon
) -> Verdict:
    """The verdict on a curve, over `seeds` seeds of the noise."""
    steps = len(curve)
    # From the first to the last loss of the real run.
    falling = [47.0 - 44.0 * step / steps for step in range(steps)]
    runs = [decays(curve, noise, seed, make) for seed in range(seeds)]
    return Verdict(
        least_found=min(map(found, runs)),
        mean_found=sum(map(found, runs)) / seeds,
        early=sum(any(at < 0.15 for at in run) for run in runs),
        constant_least=min(len(decays([10.0] * steps, noise, seed, make)) for seed in range(seeds)),
        falling_most=max(len(decays(falling, noise, seed, make)) for seed in range(seeds)),
    )


def plain_scaling(optimizer: Optimizer, total_steps: int) -> FastFaceLR:
    """The published constants scaled with 1/T alone, which does not work."""
    scale = PUBLISHED_STEPS / total_steps
    alpha = 1e-3 * scale
    return FastFaceLR(optimizer, total_steps, alpha=alpha, beta=alpha, threshold=5e-5 * scale)


def run(
    *,
    losses: Path = FIXTURE,
    horizon: Count = PUBLISHED_STEPS // 10,
    noise: NonNegative = 0.8,
    correlation: ShareBelowOne = 0.0,
    seeds: Count = 20,
) -> dict[str, Any]:
    """Judge for_horizon, and beside it the published constants scaled with 1/T.

    losses: a log with columns step and loss (default: a test fixture).
    horizon: steps of the short run.
    noise: standard deviation of the noise.
    correlation: correlation between the noise of neighboring steps.
    seeds: number of seeds of the noise.
    """
    curve, drawn = compress(losses, horizon), Noise(noise, correlation)
    verdicts = {
        "for_horizon": judge(curve, drawn, seeds),
        "plain scaling": judge(curve, drawn, seeds, plain_scaling),
    }
    print(f"T = {horizon}, {drawn}, {seeds} seeds")
    rows = show_table(
        {"constants": name, "verdict": "passed" if verdict.passed else "missed", **asdict(verdict)}
        for name, verdict in verdicts.items()
    )
    if not verdicts["for_horizon"].passed:
        raise Failed("for_horizon misses the bar", {"rows": rows})
    return {"rows": rows}


main = command(run)
