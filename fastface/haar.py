"""How fast the loss falls: the Haar responses of the FastFace paper (arXiv 2404.11118).

Everything here is plain Python. A detector gets one finite loss per step and returns its signal,
which is positive while the loss falls and near zero when it has stopped falling. The signal is None
until the detector has seen enough losses. `delay_steps` is the number of steps for which the loss
has been stationary already when the signal falls below the threshold. `state()` returns all that a
detector remembers, as numbers and lists.
"""

import math
from typing import Any

State = dict[str, Any]

# Losses are summed as whole multiples of 2^-80 (8e-25). Sums of any length are therefore exact, and
# a loss that leaves a window leaves nothing behind.
FIXED_POINT = 2.0**80

# The run with which FastFace's constants were published: MS1MV3, 5 epochs at batch size 128.
PUBLISHED_STEPS = 202_325
SHORTEST_HORIZON = 1000
LEAST_EPOCHS = 10  # of a run whose averages are as long as an epoch
HALF_SQRT_PI = 0.8862269254527580


class FastFaceDetector:
    """D_t of FastFace (v2 of the paper), in constant time and memory.

        E_0 = L_0      E_t = α L_t + (1 - α) E_{t-1}      moving average of the loss
                       H_t = E_{t-1} - E_t                Haar kernel [1, -1] on the average
        D_1 = H_1      D_t = β H_t + (1 - β) D_{t-1}      the same smoothing again, in loss per step

    Without E this is the recurrence of the paper,

        D_t = (2 - α - β) D_{t-1} - (1 - α) (1 - β) D_{t-2} + αβ (L_{t-1} - L_t),

    which is exact only if it starts with D_0 = D_1 = α (L_0 - L_1). From D_0 = 0, its near-double
    root lets one noisy first difference grow for 1/α steps. The two averages here start exactly.

    Args:
        alpha: weight of the newest loss in the first average, in (0, 1].
        beta: weight of the newest fall in the second average, in (0, 1].
    """

    delay_steps = 0

    def __init__(self, alpha: float = 1e-3, beta: float = 1e-3) -> None:
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not 0.0 < weight <= 1.0:
                raise ValueError(
                    f"{name} is {weight}: expected a weight above 0 and at most 1, such as 0.001"
                )
        self.alpha, self.beta = alpha, beta
        self.average: float | None = None
        self.rest = 0.0
        self.signal: float | None = None

    def update(self, loss: float) -> float | None:
        """D_t for the finite loss L_t; None at t = 0."""
        average = self.average
        if average is None:
            self.average = loss
            return None

        # Kahan summation: `rest` is the part of the average below its last bit. Without it,
        # rounding would swallow a slow fall.
        fall = self.alpha * (average - loss + self.rest)
        change = self.rest - fall
        self.average = moved = average + change
        self.rest = change - (moved - average)

        signal = self.signal
        self.signal = signal = fall if signal is None else signal + self.beta * (fall - signal)
        return signal

    def state(self) -> State:
        return dict(vars(self))

    def load(self, state: State) -> None:
        vars(self).update(state)


class HorizonDetector:
    """D_t for runs of any length T: its averages are as long as the noise of the loss demands.

    The published constants belong to T = 202,325. Scaled to another T they are λ = 10.11625 / T and
    α = β = 202.325 / T. White noise of standard deviation σ in the loss makes noise of σ α^1.5 / 2
    in D. Relative to λ this noise grows as 142 σ / √T: in a short run it alone carries D above λ
    again and again, and the loss never looks stationary. Here α follows the noise:

        n_t = running mean of |L_t - L_{t-1}|
        σ_t = (√π / 2) n_t                          for normal white noise
        α_t = β_t = (2 λ / (5 σ_t))^(2/3)           kept within 50 / T and 202.325 / T

    This holds the noise of D at λ / 5, or as near to it as averages over at most T / 50 steps can.
    Longer averages respond later, by 2 / α_t - T / 101.1625 steps (`delay_steps`): the loss has
    been stationary for that long when D falls below λ. The signal is None until t α_t = 4, when the
    noise of the first losses has faded. Time and memory are constant.

    The loss also falls at the border of two epochs and rests until the next one. In a run of ten
    epochs and more, α_t is therefore at most 1 / E, so that the averages are at least as long as
    an epoch.

    Args:
        total_steps: T, at least 1000.
        threshold: λ, loss per step; None for the scaled one. A loss that falls by less than λ T
            over the whole run (10.1 with the scaled λ) counts as stationary, so a loss with another
            range needs another threshold.
        steps_per_epoch: E; None if the run has no epochs.
    """

    def __init__(
        self,
        total_steps: int,
        threshold: float | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        if total_steps < SHORTEST_HORIZON:
            raise ValueError(
                f"total_steps is {total_steps}: expected at least {SHORTEST_HORIZON}, because in a "
                "shorter run the noise of the loss hides its fall; use a schedule that does not "
                "read the loss, such as a cosine"
            )
        if threshold is not None and not 0.0 < threshold < math.inf:
            raise ValueError(f"threshold is {threshold}: expected a loss per step above 0, or None")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch is {steps_per_epoch}: expected at least 1, or None")
        self.threshold = 5e-5 * PUBLISHED_STEPS / total_steps if threshold is None else threshold
        self.published = self.fastest = 1e-3 * PUBLISHED_STEPS / total_steps
        if steps_per_epoch is not None and LEAST_EPOCHS * steps_per_epoch <= total_steps:
            self.fastest = min(self.published, 1 / steps_per_epoch)
        self.slowest = min(50 / total_steps, self.fastest)
        self.seen = 0
        self.last = 0.0
        self.noise = 0.0  # n_t
        self.difference = 1.0  # see LossScheduler.share_losses
        self.signal: float | None = None
        self.stages = FastFaceDetector(self.fastest, self.fastest)

    @property
    def delay_steps(self) -> int:
        return self._delay(self.stages.alpha)

    @property
    def least_delay(self) -> int:
        """`delay_steps` with the shortest averages: 0, or that of averages over an epoch."""
        return self._delay(self.fastest)

    def _delay(self, alpha: float) -> int:
        return round(2 / alpha - 2 / self.published)

    def update(self, loss: float) -> float | None:
        """D_t for the finite loss L_t; None until the averages have settled."""
        # n_t is a plain mean at first, and a moving average over T / 50 steps or an epoch later.
        seen = self.seen
        if seen:
            moved = abs(loss - self.last) / self.difference
            self.noise += max(self.slowest, 1 / seen) * (moved - self.noise)
        self.last = loss
        self.seen = seen + 1

        # α_t from σ_t, within its bounds.
        sigma = HALF_SQRT_PI * self.noise
        wanted = (0.4 * self.threshold / sigma) ** (2 / 3) if sigma > 0.0 else self.fastest
        stages = self.stages
        stages.alpha = stages.beta = alpha = min(max(wanted, self.slowest), self.fastest)

        signal = stages.update(loss)
        self.signal = signal if seen * alpha >= 4.0 else None
        return self.signal

    def state(self) -> State:
        state = {**vars(self), "stages": self.stages.state()}
        del state["difference"]  # it belongs to the steps to come
        del state["published"]  # the run's length says it
        return state

    def load(self, state: State) -> None:
        stages = self.stages
        vars(self).update(state, stages=stages)
        stages.load(state["stages"])


class MovingHaarDetector:
    """H_t of Moving Haar (v1 of the paper): two moving windows of m losses, in constant time.

        A_t = mean of L_{t-m+1} … L_t
        H_t = (sum of A over the older ⌊m/2⌋ of A_{t-m} … A_{t-1}
               - sum of A over the newer ⌈m/2⌉) / m

    The windows end one step before t. The authors' code takes its first mean at t = m, so the first
    response is at t = 2m. Its unit is that of the loss. An odd m is unbalanced, as published: a
    constant loss c gives -c/m and not 0.

    Let Q_t be the sum of the sums L_0 + … + L_{i-1} over all i ≤ t. Every sum of A is a difference
    of such sums, and

        m² H_t = -Q_t + 2 Q_{t-⌈m/2⌉} - 2 Q_{t-m-⌈m/2⌉} + Q_{t-2m}.

    Q is a whole number and therefore exact: nothing drifts, however long the run. The memory holds
    the last 2m + 1 values of Q.

    Args:
        window: m, in steps, at least 2.
    """

    delay_steps = 0

    def __init__(self, window: int) -> None:
        if window < 2:
            raise ValueError(
                f"window is {window}: expected at least 2 steps, "
                "such as the 4000 of the published run"
            )
        self.window = window
        self.seen = 0
        self.total = 0
        self.sums = [0] * (2 * window + 1)  # a ring buffer: Q_t lies at t modulo its length
        self.signal: float | None = None

    def update(self, loss: float) -> float | None:
        """H_t for the finite loss L_t, |L_t| < 1e284; None while t < 2m."""
        sums, window, seen = self.sums, self.window, self.seen
        head = seen % len(sums)
        newest = sums[head]
        if seen >= 2 * window:
            # Negative indices count from the end of the list, which makes it a ring.
            middle = head - (window + 1) // 2
            response = 2 * (sums[middle] - sums[middle - window]) - newest + sums[head - 2 * window]
            self.signal = response / (window * window) / FIXED_POINT

        self.total += int(loss * FIXED_POINT)
        self.seen = seen = seen + 1
        sums[seen % len(sums)] = newest + self.total
        return self.signal

    def state(self) -> State:
        return {**vars(self), "sums": list(self.sums)}

    def load(self, state: State) -> None:
        vars(self).update(state, sums=list(state["sums"]))
