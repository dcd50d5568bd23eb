"""Learning-rate schedulers that read the loss: FastFace and Moving Haar (arXiv 2404.11118)."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastface.haar import FastFaceDetector, HorizonDetector, MovingHaarDetector
from fastface.pinned_copy import PinnedCopy

Detector = FastFaceDetector | HorizonDetector | MovingHaarDetector


class LossScheduler(LRScheduler):
    """What FastFaceLR and MovingHaarLR share. They add when the learning rate changes, and how.

    At optimizer step t (0-based) the learning rate of a parameter group is

        base learning rate × `scale` × min(1, (t + 1) / warmup_steps),

    and over the last `cooldown_steps` of `total_steps`, if there are any, that times
    (total_steps - t) / cooldown_steps.

    These attributes are plain numbers for logs and plots:
        signal: D_t or H_t of the last loss; None while undefined.
        threshold: λ; a step whose signal lies below it is stationary.
        patience_steps: the learning rate changes after more than this many stationary steps in a
            row.
        stationary_steps: number of stationary steps in a row, up to now.
        decays: how often the learning rate was lowered.
        scale: product of all changes of the learning rate.
        nonfinite_losses: number of NaN or infinite losses, which the signal leaves out.
        skipped_steps: number of calls of `step(None)`.
    """

    reads_loss = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        detector: Detector,
        threshold: float,
        patience_steps: float,
        warmup_steps: int,
        total_steps: int = 0,
        cooldown_steps: float = 0.0,
    ) -> None:
        _require(math.isfinite(threshold), "threshold", threshold, "a finite number")
        _require(patience_steps >= 0, "patience_steps", patience_steps, "0 or more steps")
        _require(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more steps")
        self.threshold = threshold
        self.patience_steps = patience_steps
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.cooldown_steps = cooldown_steps
        self.scale = 1.0
        self.decays = 0
        self.stationary_steps = 0
        self.nonfinite_losses = 0
        self.skipped_steps = 0
        self._losses_read = 0
        self._detector = detector
        self._copy: PinnedCopy | None = None  # made for the first CUDA loss
        self._arriving: PinnedCopy | float | None = None  # the loss for the next call
        super().__init__(optimizer)

    @property
    def signal(self) -> float | None:
        return self._detector.signal

    def step(self, loss: float | Tensor | None) -> None:  # type: ignore[override]
        """Call once after each `optimizer.step()`.

        NaN and infinity are counted; they change neither the signal nor the stationary steps.

        Args:
            loss: the loss of this step, as a float or a 0-d tensor, averaged over all ranks.
                A CUDA tensor is copied without blocking, and the next call reads the copy: the
                learning rate follows one step later, and `flush` reads the last loss of a run.
                None means that the loss scaler skipped this optimizer step; nothing changes but
                the count of skipped steps.
        """
        if loss is None:
            self.skipped_steps += 1
            return
        self.last_epoch += 1
        self._step_count += 1
        if self._arriving is not None:
            self.flush()
        if not isinstance(loss, Tensor):
            self._read(float(loss))
        elif loss.is_cuda:
            self._send(loss)
        else:
            self._read(loss.item())
        cooling = self.cooldown_steps and self.last_epoch > self.total_steps - self.cooldown_steps
        if cooling or self.last_epoch < self.warmup_steps:
            self._adopt_groups()
            self._set_lrs(self.get_lr())

    def flush(self) -> None:
        """Reads the last CUDA loss and waits for it if necessary; call it when training ends.

        Without CUDA it does nothing.
        """
        loss = self._arrived()
        self._arriving = None
        if loss is not None:
            self._read(loss)

    def share_losses(self, difference: float) -> None:
        """Say that the losses to come are not of different samples from step to step.

        So it is if the optimizer's batch has grown, and the scheduler still counts in the smaller
        steps that it was made for: several calls of `step` then get the same loss. `for_horizon`
        estimates the noise of the loss by its differences from step to step, and needs to know how
        small they are. The other signals do not depend on it. It is no part of `state_dict`.

        Args:
            difference: standard deviation of L_t - L_{t-1}, averaged over t, as a multiple of that
                of steps with samples of their own; 1 at first.
        """
        _require(0.0 < difference <= 1.0, "difference", difference, "above 0 and at most 1")
        if isinstance(self._detector, HorizonDetector):
            self._detector.difference = difference

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group for the next optimizer step."""
        warm = min(1.0, (self.last_epoch + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = max(self.total_steps - self.last_epoch, 0)
        cool = min(1.0, left / self.cooldown_steps) if self.cooldown_steps else 1.0
        return [base * (self.scale * warm * cool) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """All that later learning rates depend on, as numbers and lists.

        It waits for a CUDA loss that is on its way.
        """
        kept_apart = ("optimizer", "_detector", "_copy", "_arriving")
        state = {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
            if name not in kept_apart
        }
        return {**state, "detector": self._detector.state(), "arriving": self._arrived()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a `state_dict`, with its settings and its learning rates."""
        state = dict(state_dict)
        detector = state.pop("detector", {})
        expected = self._detector.state()
        if detector.keys() != expected.keys():
            raise ValueError(
                f"this is not the state of a {type(self).__name__} made like this one: "
                f"its detector has {sorted(detector)}, expected {sorted(expected)}; "
                "load it into a scheduler of the kind that saved it"
            )
        groups, found = len(self.optimizer.param_groups), len(state["base_lrs"])
        what = "the number of parameter groups in the state"
        _require(found <= groups, what, found, f"at most {groups}")
        self._arriving = state.pop("arriving")
        self._detector.load(detector)
        vars(self).update(state)
        self.base_lrs = list(self.base_lrs)
        self._set_lrs(self._last_lr)

    def _initial_step(self) -> None:
        """Sets the first learning rates; torch's constructor calls it.

        Torch's own method would call `step`, which needs a loss here.
        """
        self._step_count = 1
        self.last_epoch = 0
        self._set_lrs(self.get_lr())

    def _send(self, loss: Tensor) -> None:
        _require(loss.numel() == 1, "loss", tuple(loss.shape), "a 0-d tensor")
        if self._copy is None:
            self._copy = PinnedCopy()
        self._copy.start(loss)
        self._arriving = self._copy

    def _arrived(self) -> float | None:
        return self._arriving.value() if isinstance(self._arriving, PinnedCopy) else self._arriving

    def _read(self, loss: float) -> None:
        self._losses_read += 1
        if loss - loss != 0.0:  # NaN or infinite
            self.nonfinite_losses += 1
            return
        signal = self._detector.update(loss)
        if signal is None or self._losses_read <= self.warmup_steps:
            return
        if signal >= self.threshold:
            self.stationary_steps = self._detector.delay_steps
            self._falling()
            return
        self.stationary_steps += 1
        if self.stationary_steps > self.patience_steps and (factor := self._next_factor()):
            self.stationary_steps = 0
            self._change(factor)

    def _falling(self) -> None:
        """Called at every step that is not stationary."""

    def _next_factor(self) -> float | None:
        """Called when the loss has been stationary for long enough.

        Returns what to multiply the learning rate by, or None to leave it.
        """
        raise NotImplementedError

    def _change(self, factor: float) -> None:
        self._adopt_groups()
        self.scale *= factor
        self.decays += factor < 1.0
        self._set_lrs(self.get_lr())

    def _adopt_groups(self) -> None:
        # A group that was added later came with base learning rate × scale.
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            self.base_lrs.append(group.setdefault("initial_lr", group["lr"] / self.scale))

    def _set_lrs(self, lrs: list[float | Tensor]) -> None:
        groups = self.optimizer.param_groups
        for group, lr in zip(groups, lrs, strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = float(lr)
        current = [group["lr"] for group in groups]
        self._last_lr = [lr.clone() if isinstance(lr, Tensor) else lr for lr in current]


class FastFaceLR(LossScheduler):
    """FastFace (arXiv 2404.11118 v2): halves the learning rate when the loss stops falling.

        E_t = α L_t + (1 - α) E_{t-1},    E_0 = L_0
        H_t = E_{t-1} - E_t
        D_t = β H_t + (1 - β) D_{t-1},    D_1 = H_1

    When D_t < λ for more than τ T steps in a row, the learning rate is multiplied by `factor`, and
    the count of steps starts again. Time and memory are constant.

    The defaults are the published values, which were used with T from 202,325 to 496,875 steps and
    a base learning rate of 0.02 at batch size 128. For much shorter runs see `for_horizon`.

    Args:
        optimizer: the optimizer whose learning rates are set, in all parameter groups.
        total_steps: T, optimizer steps of the whole run.
        alpha: α, weight of the newest loss in its average, per step.
        beta: β, weight of the newest fall in its average, per step.
        threshold: λ, loss per step.
        patience_fraction: τ, fraction of the run.
        factor: what a decay multiplies the learning rate by (the paper's 1/δ).
        max_decays: largest number of decays.
        warmup_steps: steps of linear warm-up; losses are read, but no step counts as stationary.
        cooldown: fraction of the run at its end, over which a straight line to zero multiplies the
            learning rate. The paper has none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        alpha: float = 1e-3,
        beta: float = 1e-3,
        threshold: float = 5e-5,
        patience_fraction: float = 0.05,
        factor: float = 0.5,
        max_decays: int = 8,
        warmup_steps: int = 0,
        cooldown: float = 0.0,
    ) -> None:
        _require(total_steps >= 1, "total_steps", total_steps, "at least one step")
        fraction = 0.0 <= patience_fraction <= 1.0
        _require(fraction, "patience_fraction", patience_fraction, "a fraction, 0 to 1")
        _require(0.0 < factor < 1.0, "factor", factor, "a number between 0 and 1, such as 0.5")
        _require(max_decays >= 0, "max_decays", max_decays, "0 or more")
        _require(0.0 <= cooldown <= 1.0, "cooldown", cooldown, "a fraction, 0 to 1")
        self.factor = factor
        self.max_decays = max_decays
        super().__init__(
            optimizer,
            detector=FastFaceDetector(alpha, beta),
            threshold=threshold,
            patience_steps=patience_fraction * total_steps,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            cooldown_steps=cooldown * total_steps,
        )

    @classmethod
    def for_horizon(
        cls,
        optimizer: Optimizer,
        total_steps: int,
        *,
        steps_per_epoch: int | None = None,
        threshold: float | None = None,
        patience_fraction: float | None = None,
        factor: float = 0.5,
        max_decays: int = 8,
        warmup_steps: int = 0,
        cooldown: float = 0.2,
    ) -> "FastFaceLR":
        """FastFace for a run of any length from 1000 steps; an extension that the paper lacks.

        Without a threshold λ = 10.11625 / T, so that the same curve drawn over T steps decays at
        the same fractions of the run. The averages are as long as the noise of the loss demands
        (equations in `fastface.haar.HorizonDetector`). The noise is assumed to be independent from
        step to step: decays are missed where neighboring losses are correlated by 0.5 or more.

        In a run of ten epochs and more, the averages are at least as long as an epoch, because the
        loss falls at the borders of epochs and rests between them. Such averages respond late, also
        to a decay, so without a patience τ is 0.05 plus their delay as a fraction of the run.

        Args besides those of the class:
            steps_per_epoch: optimizer steps of an epoch; None if the run has no epochs.

        ValueError if total_steps is below 1000.
        """
        detector = HorizonDetector(total_steps, threshold, steps_per_epoch)
        if patience_fraction is None:
            patience_fraction = min(0.05 + detector.least_delay / total_steps, 1.0)
        scheduler = cls(
            optimizer,
            total_steps,
            threshold=detector.threshold,
            patience_fraction=patience_fraction,
            factor=factor,
            max_decays=max_decays,
            warmup_steps=warmup_steps,
            cooldown=cooldown,
        )
        scheduler._detector = detector
        return scheduler

    def _next_factor(self) -> float | None:
        return self.factor if self.decays < self.max_decays else None


class MovingHaarLR(LossScheduler):
    """Moving Haar (arXiv 2404.11118 v1): compares two moving windows of the loss.

        A_t = mean of the last m losses
        H_t = (sum of A over the older ⌊m/2⌋ of A_{t-m} … A_{t-1} - sum over the newer ⌈m/2⌉) / m

    When H_t < λ for more than P steps in a row, the learning rate is multiplied by `factor`, and
    the count of steps starts again. After `restart_after` such decays without one H_t ≥ λ between
    them the learning rate is multiplied by `restart_factor` instead.

    With m = 4000 this gives the learning rates of the published MS1MV3 run. Time is constant, and
    the memory holds 2m numbers.

    Args:
        optimizer: the optimizer whose learning rates are set, in all parameter groups.
        window: m, steps (published: 4000).
        threshold: λ, in the unit of the loss.
        patience_steps: P, steps; None: 2m.
        factor: what a decay multiplies the learning rate by.
        restart_after: decays in a row before the learning rate is raised; None: never.
        restart_factor: what a restart multiplies the learning rate by.
        warmup_steps: steps of linear warm-up; losses are read, but no step counts as stationary.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        window: int,
        threshold: float = 0.06,
        patience_steps: int | None = None,
        factor: float = 0.5,
        restart_after: int | None = 3,
        restart_factor: float = 4.0,
        warmup_steps: int = 0,
    ) -> None:
        _require(0.0 < factor < 1.0, "factor", factor, "a number between 0 and 1, such as 0.5")
        decays = math.inf if restart_after is None else restart_after
        _require(decays >= 1, "restart_after", restart_after, "at least 1, or None")
        raises = 1.0 < restart_factor < math.inf
        _require(raises, "restart_factor", restart_factor, "a number above 1, such as 4")
        self.factor = factor
        self.restart_after = restart_after
        self.restart_factor = restart_factor
        self.decays_in_a_row = 0
        super().__init__(
            optimizer,
            detector=MovingHaarDetector(window),
            threshold=threshold,
            patience_steps=2 * window if patience_steps is None else patience_steps,
            warmup_steps=warmup_steps,
        )

    def _falling(self) -> None:
        self.decays_in_a_row = 0

    def _next_factor(self) -> float:
        if self.decays_in_a_row == self.restart_after:
            self.decays_in_a_row = 0
            return self.restart_factor
        self.decays_in_a_row += 1
        return self.factor


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {found}: expected {expected}")
