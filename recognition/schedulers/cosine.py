"""Half a cosine from the base learning rate down (SGDR without restarts, arXiv 1608.03983)."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.options import CountOrZero, Share
from recognition.schedulers import by_step


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: CountOrZero = 0,
    final: Share = 0.0,
) -> LambdaLR:
    """Half a cosine over the steps that follow the warm-up.

    warmup_steps: optimizer steps of linear warm-up, part of the run's steps.
    final: last learning rate, as a share of the base learning rate.
    """
    span = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step / span, 1.0)))

    return by_step(optimizer, factor, warmup_steps=warmup_steps, total_steps=total_steps)
