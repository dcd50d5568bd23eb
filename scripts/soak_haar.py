"""The detectors over 10^7 steps: do their sums drift?

The windowed detector must equal, bit for bit, a fresh one that saw only the last 2m losses; FastFace's must equal its
definition evaluated in long double, to 1e-10 of the largest |D|. Exit status 1 if not. About two minutes.

    python scripts/soak_haar.py [--steps 10000000]
"""

import argparse
import random
import sys

import numpy as np

from fastface.haar import FastFaceDetector, MovingHaarDetector

WINDOW = 1001


def loss_at(step: int, generator: random.Random) -> float:
    """A noisy fall with a spike now and then."""
    return 3.0 + 4.4e7 / (1e6 + step) + generator.gauss(0.0, 0.8) + (1e3 if step % 99_991 == 0 else 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10**7)
    steps = parser.parse_args().steps
    if steps < 2 * WINDOW:
        print(f"--steps is {steps}: expected at least {2 * WINDOW}", file=sys.stderr)
        return 2
    generator = random.Random(0)
    windowed, fresh = MovingHaarDetector(WINDOW), MovingHaarDetector(WINDOW)
    fastface = FastFaceDetector()
    rate, average, signal = np.longdouble(1e-3), np.longdouble(0), np.longdouble(0)
    worst = largest = np.longdouble(0)
    for step in range(steps):
        loss = loss_at(step, generator)
        windowed.update(loss)
        if step >= steps - 2 * WINDOW:
            fresh.update(loss)
        found = fastface.update(loss)
        if found is None:
            average = np.longdouble(loss)
            continue
        before, average = average, rate * loss + (1 - rate) * average
        fall = before - average
        signal = fall if step == 1 else rate * fall + (1 - rate) * signal
        worst, largest = max(worst, abs(found - signal)), max(largest, abs(signal))
    print(f"after {steps} steps")
    print(f"windowed: {windowed.signal!r}, a fresh detector on the last {2 * WINDOW} losses: {fresh.signal!r}")
    print(f"FastFace: off its definition by at most {worst / largest:.1e} of the largest |D|, {largest:.3g}")
    return 0 if windowed.signal == fresh.signal and worst <= 1e-10 * largest else 1


if __name__ == "__main__":
    sys.exit(main())
