"""Learning-rate schedulers that read the loss: FastFace and Moving Haar (arXiv 2404.11118)."""

import math
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastface.haar import FastFaceDetector, HorizonDetector, MovingHaarDetector
from fastface.lag import PinnedCopy


class Detector(Protocol):
    """How fast the loss falls; see `fastface.haar`."""

    signal: float | None

    @property
    def head_start(self) -> int:
        """Steps that the loss has been stationary for when the signal says so; 0 unless they are to
        be counted."""
        ...

    def update(self, loss: float) -> float | None: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class LossScheduler(LRScheduler):
    """What FastFaceLR and MovingHaarLR share: everything but when the rate changes, and by how
    much.

    At optimizer step t (0-based) a parameter group's rate is its base rate × `scale` × min(1, (t +
    1) / warmup_steps).

    Plain numbers to read at any time, for logs and plots:
        signal: D_t or H_t of the last loss that was read; None while undefined.
        threshold: λ; a step whose signal lies below it is stationary.
        patience_steps: the rate changes after more than this many stationary steps in a row.
        stationary_steps: how many steps in a row, up to now, were stationary.
        decays: how often the rate was lowered.
        scale: product of all changes of the rate.
        nonfinite_losses: NaN or infinite losses, which the signal leaves out.
        skipped_steps: calls of `step(None)`.
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
    ) -> None:
        _require(math.isfinite(threshold), "threshold", threshold, "a finite number")
        _require(patience_steps >= 0, "patience_steps", patience_steps, "0 or more steps")
        _require(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more steps")
        self.threshold = threshold
        self.patience_steps = patience_steps
        self.warmup_steps = warmup_steps
        self.scale = 1.0
        self.decays = 0
        self.stationary_steps = 0
        self.nonfinite_losses = 0
        self.skipped_steps = 0
        self._losses_read = 0
        self._detector = detector
        self._copy: PinnedCopy | None = None  # made for the first CUDA loss
        self._arriving: PinnedCopy | float | None = None  # the loss that the next call reads
        super().__init__(optimizer)

    @property
    def signal(self) -> float | None:
        return self._detector.signal

    def step(self, loss: float | Tensor | None) -> None:  # type: ignore[override]
        """Call once after each `optimizer.step()`.

        Args:
            loss: this step's loss, a float or a 0-d tensor, the same on all ranks (so averaged over
            them).
                A CUDA tensor is copied without blocking and read by the next call: the rate follows
                one step later, and `flush` reads the last loss of a run. Anything else is read at
                once. None: the loss scaler skipped this optimizer step; nothing moves, the call is
                counted. NaN and infinity are counted and leave the signal and the stationary steps
                as they were.
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
        if self.last_epoch < self.warmup_steps:
            self._set_rates(self.get_lr())

    def flush(self) -> None:
        """Reads the last CUDA loss, waiting for it if need be; call it when training ends. Without
        CUDA a no-op."""
        loss = self._arrived()
        self._arriving = None
        if loss is not None:
            self._read(loss)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group for the next optimizer step."""
        warm = min(1.0, (self.last_epoch + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return [base * (self.scale * warm) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """All that the next rates depend on, in numbers and lists; waits for a CUDA loss that is on
        its way."""
        kept_apart = ("optimizer", "_detector", "_copy", "_arriving")
        state = {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
            if name not in kept_apart
        }
        return {**state, "detector": self._detector.state(), "arriving": self._arrived()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a `state_dict`, its settings included, and sets the optimizer's rates to those
        of that moment."""
        state = dict(state_dict)
        detector = state.pop("detector", {})
        expected = self._detector.state()
        if detector.keys() != expected.keys():
            raise ValueError(
                f"this is not the state of a {type(self).__name__} made like this one: its detector has "
                f"{sorted(detector)}, expected {sorted(expected)}; load it into a scheduler of the kind that saved it"
            )
        groups = len(self.optimizer.param_groups)
        found = len(state["base_lrs"])
        _require(
            found <= groups,
            "the number of parameter groups in the state",
            found,
            f"at most {groups}",
        )
        self._arriving = state.pop("arriving")
        self._detector.load(detector)
        vars(self).update(state)
        self.base_lrs = list(self.base_lrs)
        self._set_rates(self._last_lr)

    def _initial_step(self) -> None:
        """Torch's constructor calls this to set the first rates; torch's own takes a step, which
        here needs a loss."""
        self._step_count = 1
        self.last_epoch = 0
        self._set_rates(self.get_lr())

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
            self.stationary_steps = self._detector.head_start
            self._falling()
            return
        self.stationary_steps += 1
        if self.stationary_steps > self.patience_steps:
            factor = self._next_factor()
            if factor is not None:
                self.stationary_steps = 0
                self._change(factor)

    def _falling(self) -> None:
        """Called at every step that is not stationary."""

    def _next_factor(self) -> float | None:
        """Called when the loss has been stationary for long enough: what to multiply the rate by,
        None for nothing."""
        raise NotImplementedError

    def _change(self, factor: float) -> None:
        for group in self.optimizer.param_groups[
            len(self.base_lrs) :
        ]:  # added since: its rate then was base × scale
            self.base_lrs.append(group.setdefault("initial_lr", group["lr"] / self.scale))
        self.scale *= factor
        self.decays += factor < 1.0
        self._set_rates(self.get_lr())

    def _set_rates(self, rates: list[float | Tensor]) -> None:
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, rates, strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = float(rate)
        self._last_lr = [
            group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
            for group in groups
        ]


class FastFaceLR(LossScheduler):
    """FastFace (arXiv 2404.11118 v2): halves the rate when the smoothed fall of the loss stays
    below a threshold.

        E_t = α L_t + (1 - α) E_{t-1},  H_t = E_{t-1} - E_t,  D_t = β H_t + (1 - β) D_{t-1};  E_0 =
        L_0, D_1 = H_1 D_t < λ for more than τ T steps in a row:  rate ← rate × factor, and the
        count starts again

    Constant time and memory. The defaults are the published values, which were used with T from
    202,325 to 496,875 steps and a base rate of 0.02 at batch 128; for runs much shorter than that
    see `for_horizon`.

    Args:
        optimizer: the optimizer whose rates are set, all its parameter groups. total_steps: T,
        optimizer steps of the whole run. alpha: α, rate of the average of the loss, per step. beta:
        β, rate of the average of its fall, per step. threshold: λ, loss per step.
        patience_fraction: τ, fraction of the run. factor: what a decay multiplies the rate by (the
        paper's 1/δ). max_decays: no more decays than this. warmup_steps: steps of linear warm-up,
        during which the loss is read and no step counts as stationary.
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
    ) -> None:
        _require(total_steps >= 1, "total_steps", total_steps, "at least one step")
        _require(
            0.0 <= patience_fraction <= 1.0,
            "patience_fraction",
            patience_fraction,
            "a fraction, 0 to 1",
        )
        _require(0.0 < factor < 1.0, "factor", factor, "a number between 0 and 1, such as 0.5")
        _require(max_decays >= 0, "max_decays", max_decays, "0 or more")
        self.total_steps = total_steps
        self.factor = factor
        self.max_decays = max_decays
        super().__init__(
            optimizer,
            detector=FastFaceDetector(alpha, beta),
            threshold=threshold,
            patience_steps=patience_fraction * total_steps,
            warmup_steps=warmup_steps,
        )

    @classmethod
    def for_horizon(
        cls,
        optimizer: Optimizer,
        total_steps: int,
        *,
        threshold: float | None = None,
        factor: float = 0.5,
        max_decays: int = 8,
        warmup_steps: int = 0,
    ) -> "FastFaceLR":
        """FastFace for a run of any length from 1000 steps: an extension of the paper, not a part
        of it.

        The threshold is λ = 10.11625 / T if none is given, so that the same curve drawn over T
        steps decays at the same fractions of the run; τ = 0.05; averages are as long as the noise
        of the loss demands (equations in `fastface.haar.HorizonDetector`). The noise is taken to be
        independent from step to step: where neighboring losses are correlated by 0.5 or more,
        decays are missed. ValueError if total_steps is below 1000.
        """
        detector = HorizonDetector(total_steps, threshold)
        scheduler = cls(
            optimizer,
            total_steps,
            threshold=detector.threshold,
            factor=factor,
            max_decays=max_decays,
            warmup_steps=warmup_steps,
        )
        scheduler._detector = detector
        return scheduler

    def _next_factor(self) -> float | None:
        return self.factor if self.decays < self.max_decays else None


class MovingHaarLR(LossScheduler):
    """Moving Haar (arXiv 2404.11118 v1): halves the rate when two moving windows say that the loss
    has stopped falling.

        A_t = mean of the last m losses H_t = (sum of A over the older ⌊m/2⌋ of A_{t-m} … A_{t-1} -
        sum over the newer ⌈m/2⌉) / m H_t < λ for more than P steps in a row:  rate ← rate × factor,
        and the count starts again; after `restart_after` of these without one H_t ≥ λ between them:
        rate ← rate × restart_factor instead

    With m = 4000 this gives the learning rates of the published MS1MV3 run. Constant time, memory
    for 2m numbers.

    Args:
        optimizer: the optimizer whose rates are set, all its parameter groups. window: m, steps
        (published: 4000). threshold: λ, in units of the loss. patience_steps: P, steps; None: 2m.
        factor: what a decay multiplies the rate by. restart_after: R, decays in a row before the
        rate is raised; None: never raise it. restart_factor: what a restart multiplies the rate by.
        warmup_steps: steps of linear warm-up, during which the loss is read and no step counts as
        stationary.
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
        _require(
            restart_after is None or restart_after >= 1,
            "restart_after",
            restart_after,
            "at least 1, or None",
        )
        _require(
            1.0 < restart_factor < math.inf,
            "restart_factor",
            restart_factor,
            "a number above 1, such as 4",
        )
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
