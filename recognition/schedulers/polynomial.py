"""Polynomial decay to zero after a warm-up: arcface_torch's schedule, power 2."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.options import CountOrZero, Positive
from recognition.schedulers import by_step


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: CountOrZero = 0,
    power: Positive = 2.0,
) -> LambdaLR:
    """base learning rate · (1 − step/total)^power, both counted from the end of the warm-up.

    warmup_steps: optimizer steps of linear warm-up, part of the run's steps.
    power: the exponent. With 1 the learning rate falls in a straight line.
    """
    span = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        return float(max(1 - step / span, 0.0) ** power)

    return by_step(optimizer, factor, warmup_steps=warmup_steps, total_steps=total_steps)
