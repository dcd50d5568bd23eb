"""The detectors over 10^7 steps: do their sums drift?

The windowed detector must equal, bit for bit, a fresh one that saw only the last 2m losses;
FastFace's must equal its definition evaluated in long double, to 1e-10 of the largest |D|. Exit
status 1 if not. Needs scipy.

    python -m scripts.soak.haar [--steps 10000000]
"""

import argparse
import sys

import numpy as np
from scipy.signal import lfilter

from fastface.haar import FastFaceDetector, MovingHaarDetector

WINDOW, CHUNK, RATE = 1001, 100_000, 1e-3


def losses_from(first: int, generator: np.random.Generator) -> np.ndarray:
    """CHUNK losses of a noisy fall with a spike now and then."""
    steps = np.arange(first, first + CHUNK)
    noise = generator.normal(0.0, 0.8, CHUNK) + np.where(steps % 99_991 == 0, 1e3, 0.0)
    return 3.0 + 4.4e7 / (1e6 + steps) + noise


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10**7, help=f"in whole chunks of {CHUNK}")
    chunks = max(1, parser.parse_args().steps // CHUNK)
    generator = np.random.default_rng(0)
    windowed, fresh, fastface = (
        MovingHaarDetector(WINDOW),
        MovingHaarDetector(WINDOW),
        FastFaceDetector(RATE, RATE),
    )
    gain, rest = np.array([RATE], np.longdouble), np.array([1, np.longdouble(RATE) - 1])
    average_state = signal_state = average = None  # of the filters, from chunk to chunk
    worst = largest = np.longdouble(0)
    for chunk in range(chunks):
        losses = losses_from(chunk * CHUNK, generator)
        found = np.array(
            [fastface.update(loss) for loss in losses.tolist()][chunk == 0 :], np.longdouble
        )
        for loss in losses.tolist():
            windowed.update(loss)
        if average is None:  # E_0 = L_0
            average, losses = np.longdouble(losses[0]), losses[1:]
            average_state = -rest[1:] * average
        averages, average_state = lfilter(
            gain, rest, losses.astype(np.longdouble), zi=average_state
        )
        falls = -np.diff(averages, prepend=average)
        average = averages[-1]
        if signal_state is None:  # D_1 = H_1, as if D_0 had been
            signal_state = -rest[1:] * falls[0]
        signals, signal_state = lfilter(gain, rest, falls, zi=signal_state)
        worst, largest = (
            max(worst, np.abs(found - signals).max()),
            max(largest, np.abs(signals).max()),
        )
    for loss in losses[-2 * WINDOW :].tolist():
        fresh.update(loss)
    print(f"after {chunks * CHUNK} steps")
    print(
        f"windowed: {windowed.signal!r}, a fresh detector on the last {2 * WINDOW} losses: {fresh.signal!r}"
    )
    print(
        f"FastFace: off its definition by at most {worst / largest:.1e} of the largest |D|, {largest:.3g}"
    )
    return 0 if windowed.signal == fresh.signal and worst <= 1e-10 * largest else 1


if __name__ == "__main__":
    sys.exit(main())
