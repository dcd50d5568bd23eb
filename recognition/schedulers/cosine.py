"""Half a cosine from the base rate to `final` of it (SGDR without restarts, arXiv 1608.03983)."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recognition.schedulers import by_step


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    final: float = 0.0,
) -> LambdaLR:
    """warmup_steps: optimizer steps of linear warm-up, part of the total. final: last rate over
    base rate, 0 to 1."""
    span = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step / span, 1.0)))

    return by_step(optimizer, factor, warmup_steps=warmup_steps)
