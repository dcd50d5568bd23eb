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

WORTH = 0.25  # share of wrong ones among the last ones found
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
    """The threshold that finds the most, with at least that expected precision.

    It does not go on where fewer than a quarter of the next ones would be wrong, π·dW < dF / 4:
    where both kinds lie apart, the threshold lies between them, however low the precision may be.

    scores: float (N,), where low ones look wrong. wrong: float (M,), scores of ones that are known
    to be wrong.
    """
    if not len(scores) or not len(wrong):
        return Cut(-np.inf, 0.0, 1.0, 0.0)
    scores, wrong = np.sort(scores), np.sort(wrong)
    share = min(1.0, float(_ratios(scores, wrong).min()))
    all_below, wrong_below = _below(scores, scores), _below(wrong, scores)
    expected = np.minimum(share * wrong_below / all_below, 1)
    good = np.flatnonzero((expected >= precision) & (wrong_below > 0))
    if not len(good):
        return Cut(-np.inf, share, 1.0, 0.0)
    gain = share * wrong_below[good] - WORTH * all_below[good]
    last = good[np.flatnonzero(gain >= gain.max() - 1e-12)[-1]]
    return Cut(float(scores[last]), share, float(expected[last]), float(wrong_below[last]))


def _ratios(scores: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """F(t) / W(t) at each score t of either kind (sorted) with a W(t) that is not too small.

    F(t) gets two standard deviations of its count on top: the least of many ratios is too small by
    chance, above all where few are wrong.
    """
    places = np.concatenate([scores, wrong])
    wrong_below = _below(wrong, places)
    counts = wrong_below >= LEAST
    below = np.searchsorted(scores, places[counts], side="right")
    ratios: np.ndarray = (below + 2 * np.sqrt(below + 1)) / len(scores) / wrong_below[counts]
    return ratios


def _below(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Share of the sorted values (N,) that are at most as high as each place (M,)."""
    found: np.ndarray = np.searchsorted(values, places, side="right") / len(values)
    return found
