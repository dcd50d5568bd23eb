"""Runs the detectors over 10⁷ steps, to see whether their sums drift.

    python -m scripts.soak.haar --steps 10000000

The signal of MovingHaarDetector must equal, bit for bit, that of a fresh one that saw only the last
2m + 1 losses. FastFaceDetector must equal its definition, evaluated in long double, to 1e-10 of the
largest |D|. Exit code 1: one of them does not.
"""

import numpy as np
from scipy.signal import lfilter

from data.options import Count
from fastface.haar import FastFaceDetector, MovingHaarDetector
from tools._cli import Failed, command

WINDOW, ALPHA = 1001, 1e-3  # m of Moving Haar; α = β of FastFace
TOLERANCE = 1e-10


def losses_of(steps: int) -> np.ndarray:
    """float64 (steps,): a noisy fall with a spike now and then."""
    at = np.arange(steps)
    noise = np.random.default_rng(0).normal(0.0, 0.8, steps) + np.where(at % 99_991 == 0, 1e3, 0.0)
    return 3.0 + 4.4e7 / (1e6 + at) + noise


def definition(losses: np.ndarray) -> np.ndarray:
    """D_1, D_2, … of FastFace in long double, by filters.

    D is the moving average of H_t = E_(t-1) - E_t, and E is the moving average of the losses. They
    start with E_0 = L_0 and D_1 = H_1.
    """
    # A moving average is the filter y_t = α x_t + (1 - α) y_(t-1). Its state zi is the second term.
    gain, feedback = np.array([ALPHA], np.longdouble), np.array([1, np.longdouble(ALPHA) - 1])
    start, rest = np.longdouble(losses[0]), losses[1:].astype(np.longdouble)
    averages, _ = lfilter(gain, feedback, rest, zi=-feedback[1:] * start)

    # The same filter on the falls of the average.
    falls = -np.diff(averages, prepend=start)
    return np.asarray(lfilter(gain, feedback, falls, zi=-feedback[1:] * falls[0])[0])


def run(*, steps: Count = 10**7) -> dict[str, float]:
    """Feed all detectors with the same losses.

    steps: number of losses for each detector; ten million need 2 GB of memory.
    """
    # Moving Haar on all losses, and a fresh one on the last two windows.
    losses = losses_of(steps)
    windowed, fresh = MovingHaarDetector(WINDOW), MovingHaarDetector(WINDOW)
    for loss in losses.tolist():
        windowed.update(loss)
    for loss in losses[-2 * WINDOW - 1 :].tolist():
        fresh.update(loss)

    # FastFace on all losses, compared with its definition at every step.
    fastface = FastFaceDetector(ALPHA, ALPHA)
    fastface.update(losses[0].item())
    found = np.fromiter(map(fastface.update, losses[1:].tolist()), np.float64)
    defined = definition(losses)
    largest = np.abs(defined).max()
    off = float(np.abs(found - defined).max() / largest)

    print(f"after {steps} steps")
    print(f"windowed: {windowed.signal!r}; fresh, {2 * WINDOW + 1} losses: {fresh.signal!r}")
    print(f"FastFace: off its definition by at most {off:.1e} of the largest |D|, {largest:.3g}")
    same = windowed.signal == fresh.signal
    record = {"steps": steps, "windowed_equal": same, "fastface_off": off}
    if not same or off > TOLERANCE:
        raise Failed("a detector drifted", record)
    return record


main = command(run)
