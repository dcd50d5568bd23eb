"""The base rate throughout, after an optional linear warm-up."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recognition.schedulers import by_step


def build(
    optimizer: Optimizer,
    *,
    warmup_steps: int = 0,
) -> LambdaLR:
    """warmup_steps: optimizer steps of linear warm-up."""
    return by_step(optimizer, lambda step: 1.0, warmup_steps=warmup_steps)
