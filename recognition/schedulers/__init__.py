"""Learning-rate schedules, one file each with a `build(optimizer, …, *, options)`.

A run gives `build` its `optimizer`, `total_steps` and `steps_per_epoch`, counted in optimizer
steps as they were planned, if it has parameters of these names. It returns a torch LRScheduler: one
that depends on the step alone (`by_step`), or a `LossReader`. A run calls it through `Schedule`.

A file whose learning rates do not depend on `total_steps` says `ANY_LENGTH = True`. A run with such
a schedule may be lengthened: it goes on as if it had been planned with the new number of epochs.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from data.parts import find_part
from data.steps import Steps

SCHEDULERS = "recognition.schedulers"


@runtime_checkable
class LossReader(Protocol):
    """A schedule whose steps need the loss, as those of `fastface` do; `reads_loss` says so.

    One that estimates the noise of the loss also has `share_losses(difference)`, which is called
    first, with `difference_of_neighbors` of the run.
    """

    reads_loss: bool

    def step(self, loss: torch.Tensor | float | None) -> None:
        """Called after each planned step, with its loss; None if all of it was skipped."""
        ...


def any_length(name: str) -> bool:
    """Whether a run with this schedule may be lengthened."""
    return bool(getattr(find_part(SCHEDULERS, name), "ANY_LENGTH", False))


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
            f"scheduler.warmup_steps: found {warmup_steps}, but the run has {total_steps} steps, "
            "so it would end within its warm-up; lower warmup_steps, or raise optim.epochs"
        )


class Schedule:
    """A schedule that counts in images: it takes a step whenever a planned step's images are over.

    In a run whose steps have the planned size, these are the optimizer steps. With other steps, the
    learning rate at each image is that of the planned run, and a `LossReader` reads the mean loss
    of the images of each planned step, so its windows and its patience last as many images. Where
    an optimizer step is longer than a planned one, several planned steps have the same loss.
    """

    def __init__(self, scheduler: LRScheduler, steps: Steps) -> None:
        self._scheduler, self._steps = scheduler, steps
        self._place = 0  # see data/steps.py
        # Of the planned step that is not yet over: the mean loss, and how many images it is of.
        self._mean: torch.Tensor | float | None = None
        self._images = 0
        share_losses = getattr(scheduler, "share_losses", None)
        if share_losses is not None:
            share_losses(difference_of_neighbors(steps))

    def advance(self, loss: torch.Tensor | None) -> None:
        """Call after each optimizer step.

        loss: the 0-d loss of the step, None if the loss scaler skipped it. A schedule that depends
        on the step alone counts skipped steps too, so that it ends where it was planned to.
        """
        self._move(self._steps.after(self._place), loss)

    def _move(self, place: int, loss: torch.Tensor | None) -> None:
        planned = self._steps.planned
        while self._place < place:
            end = min((self._place // planned + 1) * planned, place)
            if loss is not None:
                self._note(loss, end - self._place)
            self._place = end
            if end % planned == 0:
                _step(self._scheduler, self._mean)
                self._mean, self._images = None, 0

    def _note(self, loss: torch.Tensor, images: int) -> None:
        """Add a loss to the mean. A planned step with one loss gets that very loss."""
        self._images += images
        if self._mean is None:
            self._mean = loss
        else:
            self._mean = self._mean + (loss - self._mean) * (images / self._images)

    def log(self) -> dict[str, Any]:
        """What the schedule shows of itself: its `signal`, `threshold` and `decays`, if any."""
        names = ("signal", "threshold", "decays")
        shown = {name: getattr(self._scheduler, name, None) for name in names}
        return {f"schedule/{name}": value for name, value in shown.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """All that later learning rates depend on, as numbers and lists."""
        return {
            "place": self._place,
            "mean": None if self._mean is None else float(self._mean),
            "images": self._images,
            "scheduler": self._scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, with learning rates that are in proportion to this run's base learning rates.

        Call it after the state of the optimizer was loaded.
        """
        saved, own = dict(state["scheduler"]), self._scheduler.base_lrs
        saved["_last_lr"] = [
            lr * (base / before)
            for lr, base, before in zip(saved["_last_lr"], own, saved["base_lrs"], strict=True)
        ]
        self._scheduler.load_state_dict({**saved, "base_lrs": list(own)})
        groups = self._scheduler.optimizer.param_groups
        for group, lr in zip(groups, saved["_last_lr"], strict=True):
            group["lr"] = lr
        self._place, self._mean, self._images = state["place"], state["mean"], state["images"]
        self._move(self._steps.whole(self._place), None)


def difference_of_neighbors(steps: Steps) -> float:
    """Standard deviation of L_t - L_(t-1), as a multiple of that of planned steps; averaged over t.

    L_t is the mean over the images of planned step t, where those of an optimizer step have the
    same loss: the mean of theirs.
    """
    size, planned = steps.images, steps.planned
    deviations = []
    for t in range(1, size // math.gcd(size, planned) + 1):
        # How often an optimizer step counts in L_t, less how often in L_(t-1), in images.
        weights: dict[int, int] = {}
        for sign, begin in ((1, t * planned), (-1, (t - 1) * planned)):
            for step in range(begin // size, -(-(begin + planned) // size)):
                shared = min(begin + planned, (step + 1) * size) - max(begin, step * size)
                weights[step] = weights.get(step, 0) + sign * shared
        # The loss of a planned step has the variance 1, that of an optimizer step planned / size.
        variance = sum((weight / planned) ** 2 for weight in weights.values()) * planned / size
        deviations.append(math.sqrt(variance / 2))
    return sum(deviations) / len(deviations)


def _step(scheduler: LRScheduler, loss: torch.Tensor | float | None) -> None:
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
