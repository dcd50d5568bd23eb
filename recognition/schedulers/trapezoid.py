"""Warm-up, a constant stretch, and a straight line to zero: the trapezoid, or WSD, schedule.

WSD is for warm-up, stable, decay (arXiv 2404.06395); arXiv 2405.18392 compares it with the cosine.
"""

from typing import Annotated

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.options import CountOrZero, Range
from recognition.schedulers import by_step


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: CountOrZero = 0,
    decay: Annotated[float, Range(above=0, at_most=1)] = 0.2,
) -> LambdaLR:
    """The base learning rate, and over the last steps a straight line that reaches zero at the end.

    warmup_steps: optimizer steps of linear warm-up, part of the run's steps.
    decay: share of the steps after the warm-up over which the learning rate falls to zero. With 1
        it is the polynomial schedule of power 1.
    """
    span = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        return min(max(1 - step / span, 0.0) / decay, 1.0)

    return by_step(optimizer, factor, warmup_steps=warmup_steps, total_steps=total_steps)
