"""Runs the detectors over 10⁷ steps, to see whether their sums drift.

    python -m scripts.soak.haar --steps 10000000

The windowed detector must equal, bit for bit, a fresh one that saw only the last 2m losses.
FastFace's detector must equal its definition, evaluated in long double, to 1e-10 of the largest
|D|. Exit code 1: one of them does not.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.signal import lfilter

from data.options import Count
from fastface.haar import FastFaceDetector, MovingHaarDetector
from tools._cli import Failed, run_function

WINDOW, CHUNK, RATE = 1001, 100_000, 1e-3
TOLERANCE = 1e-10


class Definition:
    """D_t of FastFace in long double, chunk by chunk: the moving average of -ΔE_t, where E_t is the
    moving average of the losses, E_0 = L_0 and D_1 = -ΔE_1."""

    def __init__(self, first_loss: float) -> None:
        # y_t = RATE x_t + (1 - RATE) y_(t-1). A filter's state holds the second term.
        self.gain = np.array([RATE], np.longdouble)
        self.feedback = np.array([1, np.longdouble(RATE) - 1])
        self.average = np.longdouble(first_loss)
        self.average_state = -self.feedback[1:] * self.average
        self.signal_state: np.ndarray | None = None

    def signals(self, losses: np.ndarray) -> np.ndarray:
        """D_t for the next losses (N,), long double (N,)."""
        averages, self.average_state = lfilter(
            self.gain, self.feedback, losses.astype(np.longdouble), zi=self.average_state
        )
        falls = -np.diff(averages, prepend=self.average)
        self.average = averages[-1]
        if self.signal_state is None:  # D_1 = H_1, as if D_0 had been H_1 too
            self.signal_state = -self.feedback[1:] * falls[0]
        found, self.signal_state = lfilter(self.gain, self.feedback, falls, zi=self.signal_state)
        return found


def losses_from(first: int, generator: np.random.Generator) -> np.ndarray:
    """CHUNK losses of a noisy fall with a spike now and then."""
    steps = np.arange(first, first + CHUNK)
    noise = generator.normal(0.0, 0.8, CHUNK) + np.where(steps % 99_991 == 0, 1e3, 0.0)
    return 3.0 + 4.4e7 / (1e6 + steps) + noise


def run(*, steps: Count = 10**7) -> dict[str, float]:
    """Feed all detectors with the same losses.

    steps: rounded down to whole chunks of 100,000.
    """
    steps = max(1, steps // CHUNK) * CHUNK
    generator = np.random.default_rng(0)
    windowed, fastface = MovingHaarDetector(WINDOW), FastFaceDetector(RATE, RATE)
    definition: Definition | None = None
    worst = largest = np.longdouble(0)
    for first in range(0, steps, CHUNK):
        losses = losses_from(first, generator)
        found = [fastface.update(loss) for loss in losses.tolist()]
        for loss in losses.tolist():
            windowed.update(loss)

        rest = slice(None)
        if definition is None:
            definition, rest = Definition(losses[0]), slice(1, None)
        signals = definition.signals(losses[rest])
        worst = max(worst, np.abs(np.array(found[rest], np.longdouble) - signals).max())
        largest = max(largest, np.abs(signals).max())
    fresh = MovingHaarDetector(WINDOW)
    for loss in losses[-2 * WINDOW :].tolist():
        fresh.update(loss)

    off = float(worst / largest)
    print(f"after {steps} steps")
    print(f"windowed: {windowed.signal!r}; a fresh one on {2 * WINDOW} losses: {fresh.signal!r}")
    print(f"FastFace: off its definition by at most {off:.1e} of the largest |D|, {largest:.3g}")
    same = windowed.signal == fresh.signal
    record = {"steps": steps, "windowed_equal": same, "fastface_off": off}
    if not same or off > TOLERANCE:
        raise Failed("a detector drifted", record)
    return record


def main(argv: list[str] | None = None) -> int:
    return run_function(run, argv)


if __name__ == "__main__":
    sys.exit(main())
