"""Where to cut scores of which a part is wrong, if it is known how wrong ones are distributed.

Wrong ones can be made from the set itself: a wrong label from another identity's, two people under
one label by joining two identities, one person under two labels by halving an identity. Let F be
the distribution of all scores, W that of the wrong ones, G that of the right ones, and π the share
of wrong ones:

    F(t) = π·W(t) + (1 - π)·G(t) ≥ π·W(t),  so that  π ≤ F(t) / W(t) for each t.

The least of these ratios is the estimate of π (Blanchard, Lee, Scott: Semi-supervised novelty
detection, JMLR 2010, equation 8, without its correction for few samples). Of those whose score is
at most t, a share of π·W(t) / F(t) is wrong, and a share of W(t) of all wrong ones is among them.
"""

from dataclasses import dataclass

import numpy as np

LEAST = 0.2  # W(t) where a ratio counts for π: it is noisy where few wrong scores lie


@dataclass(frozen=True)
class Cut:
    """A threshold, and what it promises.

    threshold: scores at most this high are called wrong; -inf if none is.
    share: π, the estimated share of wrong ones, 0…1.
    precision, recall: expected of the threshold, 0…1.
    """

    threshold: float
    share: float
    precision: float
    recall: float


def find_cut(scores: np.ndarray, wrong: np.ndarray, precision: float) -> Cut:
    """The highest threshold with that expected precision.

    scores: float (N,), where low ones look wrong. wrong: float (M,), scores of ones that are known
    to be wrong.
    """
    if not len(scores) or not len(wrong):
        return Cut(-np.inf, 0.0, 1.0, 0.0)
    scores, wrong = np.sort(scores), np.sort(wrong)
    all_below = np.searchsorted(scores, scores, side="right") / len(scores)
    wrong_below = np.searchsorted(wrong, scores, side="right") / len(wrong)
    counts = wrong_below >= min(LEAST, wrong_below.max())
    share = float((all_below[counts] / wrong_below[counts]).min()) if wrong_below[-1] else 0.0
    share = min(share, 1.0)
    expected = np.minimum(share * wrong_below / all_below, 1)
    good = np.flatnonzero((expected >= precision) & (wrong_below > 0))
    if not len(good):
        return Cut(-np.inf, share, 1.0, 0.0)
    last = good[-1]
    return Cut(float(scores[last]), share, float(expected[last]), float(wrong_below[last]))
