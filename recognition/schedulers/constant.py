"""The base learning rate in every step, after an optional linear warm-up."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.options import CountOrZero
from recognition.schedulers import by_step

ANY_LENGTH = True


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: CountOrZero = 0,
) -> LambdaLR:
    """A constant learning rate.

    warmup_steps: optimizer steps of linear warm-up.
    """
    return by_step(optimizer, lambda step: 1.0, warmup_steps=warmup_steps, total_steps=total_steps)
