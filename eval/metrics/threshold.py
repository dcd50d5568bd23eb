"""The threshold at a false accept rate, and how far it can be trusted."""

import numpy as np
from scipy.special import bdtr, betaincinv

from eval.metrics.verification import strict_threshold

SURE = 0.95


def threshold_at_far(impostors: np.ndarray, far: float) -> tuple[float, float, float] | None:
    """(threshold, low, high) on the scores of impostor pairs (N,); None where N·far is below 1.

    Above the threshold lies at most a share `far` of these pairs. Of all such pairs in the world,
    more than a share `far` lies above `low` and at most a share `far` above `high`, and each of the
    two statements holds with a probability of 95 %. They follow from the order of the scores alone,
    whatever their distribution: of N independent pairs, K lie above the true threshold, and K is
    binomial (N, far). So the m-th highest score is below the true threshold where P(K ≥ m) ≤ 5 %,
    and the j-th highest above it where P(K < j) ≤ 5 %.

    Fewer than about 3/far pairs have no such j. Then `high` is the highest score.
    """
    count = len(impostors)
    if count * far < 1 - 1e-9:
        return None
    # P(K ≤ k) for the k that may matter: ten standard deviations, and never less than 20.
    most = min(count, int(count * far + 10 * np.sqrt(count * far) + 20))
    at_most = bdtr(np.arange(most + 1), count, far)
    m = min(int(np.searchsorted(at_most, SURE)) + 1, count)
    j = max(int(np.searchsorted(at_most, 1 - SURE, side="right")), 1)
    highest = np.sort(np.partition(impostors, count - m)[count - m :])
    return strict_threshold(impostors, far), float(highest[0]), float(highest[-j])


def rate_at_most(events: int, trials: int) -> float:
    """The rate that lies above the true one with a probability of 95 %, after so many events.

    It is the upper bound of Clopper and Pearson (1934).
    """
    if events >= trials:
        return 1.0
    return float(betaincinv(events + 1, trials - events, SURE))
