"""How far a measured rate may be from the true one."""

from math import sqrt

Z95 = 1.959964
"""The standard normal distribution has 95 % of its mass between −Z95 and Z95."""


def wilson(rate: float, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate in [0, 1] that was measured on `trials` independent trials.

    (E. B. Wilson, JASA 22, 1927.) It covers the true rate with the probability that belongs to z,
    95 % by default, and it is not empty where the rate is 0 or 1. ValueError for no trials or a
    rate outside of [0, 1].
    """
    if trials < 1 or not 0 <= rate <= 1:
        raise ValueError(f"no interval of a rate of {rate} on {trials} trials")
    center = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2) / (1 + z**2 / trials)
    return max(center - half, 0.0), min(center + half, 1.0)
