"""Learning-rate schedules, one file each with a `build(optimizer, …, *, options)`.

Of the run a `build` may ask for `optimizer`, `total_steps` and `steps_per_epoch`, counted in
optimizer steps. It returns a torch LRScheduler: one by step (`by_step`), or a `LossReader`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@runtime_checkable
class LossReader(Protocol):
    """A schedule that is stepped with the loss, as those of `fastface`; `reads_loss` says so."""

    reads_loss: bool

    def step(self, loss: torch.Tensor | None) -> None:
        """One optimizer step done; `loss` as `advance` has it."""
        ...


def by_step(
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    *,
    warmup_steps: int,
    total_steps: int,
) -> LambdaLR:
    """LambdaLR by a factor that rises linearly over the warm-up, then is `factor(steps since)`."""
    check_warmup(warmup_steps, total_steps)

    def warmed(step: int) -> float:
        return (step + 1) / warmup_steps if step < warmup_steps else factor(step - warmup_steps)

    return LambdaLR(optimizer, warmed)


def check_warmup(warmup_steps: int, total_steps: int) -> None:
    """ValueError for a warm-up that is longer than the run."""
    if warmup_steps > total_steps:
        raise ValueError(
            f"scheduler.warmup_steps: found {warmup_steps}, expected at most {total_steps}, "
            "the optimizer steps of the run"
        )


def advance(scheduler: LRScheduler, loss: torch.Tensor | None) -> None:
    """One optimizer step done; `loss` is its 0-d loss, None where the loss scaler skipped the step.

    A schedule by step counts skipped steps too, so that it ends where it was planned to.
    """
    if isinstance(scheduler, LossReader):
        scheduler.step(loss)
    elif loss is not None:
        scheduler.step()
    else:
        with warnings.catch_warnings():
            # torch warns of a skipped first step as if the optimizer's step had been forgotten
            message = "Detected call of `lr_scheduler.step"
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
            scheduler.step()


def schedule_log(scheduler: LRScheduler) -> dict[str, Any]:
    """What a schedule shows of itself in logs: its `signal`, `threshold` and `decays`, if any."""
    shown = {name: getattr(scheduler, name, None) for name in ("signal", "threshold", "decays")}
    return {f"schedule/{name}": value for name, value in shown.items() if value is not None}
