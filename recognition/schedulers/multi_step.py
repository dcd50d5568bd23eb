"""The rate times `factor` at given epochs: the classical baseline of the papers."""

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recognition.schedulers import by_step


def build(
    optimizer: Optimizer,
    steps_per_epoch: int,
    *,
    milestones: Sequence[float] = (10, 16, 18),
    factor: float = 0.1,
    warmup_steps: int = 0,
) -> LambdaLR:
    """milestones: epochs (fractions allowed), ascending, counted from the start of the run, after
    each of which the rate is multiplied by `factor`."""
    if list(milestones) != sorted(milestones):
        raise ValueError(f"multi_step: milestones {list(milestones)} must ascend")
    steps = [epoch * steps_per_epoch for epoch in milestones]

    def decayed(step: int) -> float:
        return factor ** bisect_right(steps, step + warmup_steps)

    return by_step(optimizer, decayed, warmup_steps=warmup_steps)
