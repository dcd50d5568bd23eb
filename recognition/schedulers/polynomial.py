"""Polynomial decay to zero after a warm-up: arcface_torch's schedule, power 2."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recognition.schedulers import by_step


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    power: float = 2.0,
) -> LambdaLR:
    """rate = base · (1 − step/total)^power over what follows `warmup_steps` of linear warm-up."""
    span = max(total_steps - warmup_steps, 1)
    return by_step(
        optimizer, lambda step: max(1 - step / span, 0.0) ** power, warmup_steps=warmup_steps
    )
