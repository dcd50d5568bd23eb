"""Learning-rate schedules: one file each; each exports `build(*, optimizer, total_steps,
steps_per_epoch, **options)`.

Those that read the loss come from `fastface`; the others are torch's LambdaLR over a function of
the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fastface.schedulers import FastFaceLR, MovingHaarLR


def by_step(
    optimizer: torch.optim.Optimizer, factor: Callable[[int], float], *, warmup_steps: int
) -> LambdaLR:
    """LambdaLR whose factor rises linearly over `warmup_steps`, then is `factor(step -
    warmup_steps)`."""

    def warmed(step: int) -> float:
        return (step + 1) / warmup_steps if step < warmup_steps else factor(step - warmup_steps)

    return LambdaLR(optimizer, warmed)


def advance(scheduler: LRScheduler, loss: torch.Tensor | None) -> None:
    """One optimizer step done; `loss` is its 0-d loss, or None where the loss scaler skipped the
    step.

    A schedule by step counts skipped steps too, so that it ends where it was planned to.
    """
    if isinstance(scheduler, (FastFaceLR, MovingHaarLR)):
        scheduler.step(loss)
    elif loss is not None:
        scheduler.step()
    else:
        with (
            warnings.catch_warnings()
        ):  # torch takes a first step that was skipped for one that was forgotten
            warnings.filterwarnings(
                "ignore", message="Detected call of `lr_scheduler.step", category=UserWarning
            )
            scheduler.step()
