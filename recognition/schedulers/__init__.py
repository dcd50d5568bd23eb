"""Learning-rate schedules, one file each with a `build(optimizer, …, *, options)`.

A run gives `build` its `optimizer`, `total_steps` and `steps_per_epoch`, counted in optimizer
steps, if it has parameters of these names. It returns a torch LRScheduler: one that depends on the
step alone (`by_step`), or a `LossReader`.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@runtime_checkable
class LossReader(Protocol):
    """A schedule whose steps need the loss, as those of `fastface` do; `reads_loss` says so."""

    reads_loss: bool

    def step(self, loss: torch.Tensor | None) -> None:
        """Called after each optimizer step, with `loss` as in `advance`."""
        ...


def by_step(
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    *,
    warmup_steps: int,
    total_steps: int,
) -> LambdaLR:
    """LambdaLR whose factor rises linearly during the warm-up, then is `factor(steps since)`."""
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
    """Step the schedule after an optimizer step.

    loss: the 0-d loss of the step, None if the loss scaler skipped it. A schedule that depends on
    the step alone counts skipped steps too, so that it ends where it was planned to.
    """
    if isinstance(scheduler, LossReader):
        scheduler.step(loss)
    elif loss is not None:
        scheduler.step()
    else:
        with warnings.catch_warnings():
            # Torch warns at a skipped first step, as if `optimizer.step()` had been forgotten.
            message = "Detected call of `lr_scheduler.step"
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
            scheduler.step()


def schedule_log(scheduler: LRScheduler) -> dict[str, Any]:
    """What a schedule shows of itself in logs: its `signal`, `threshold` and `decays`, if any."""
    shown = {name: getattr(scheduler, name, None) for name in ("signal", "threshold", "decays")}
    return {f"schedule/{name}": value for name, value in shown.items() if value is not None}
