"""The learning rate is multiplied by `factor` at given epochs, as in the papers' baselines."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.options import Ascending, CountOrZero, NonNegative, Positive
from recognition.schedulers import by_step

ANY_LENGTH = True


def build(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    milestones: Annotated[Sequence[NonNegative], Ascending()] = (10, 16, 18),
    factor: Positive = 0.1,
    warmup_steps: CountOrZero = 0,
) -> LambdaLR:
    """The base learning rate, multiplied by `factor` at each milestone.

    milestones: epochs since the start of the run, in ascending order. Fractions are allowed.
    factor: the learning rate is multiplied by it at each milestone.
    warmup_steps: optimizer steps of linear warm-up, part of the run's steps.
    """
    steps = [epoch * steps_per_epoch for epoch in milestones]

    def decayed(step: int) -> float:
        return factor ** bisect_right(steps, step + warmup_steps)

    return by_step(optimizer, decayed, warmup_steps=warmup_steps, total_steps=total_steps)
