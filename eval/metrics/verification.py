"""Verification figures from plain arrays, by sorting and counting: nothing is interpolated.

A score is a similarity: higher means more alike. A pair is accepted if its score is at or above the
threshold. In the ten-fold protocol, which has squared distances, a pair is accepted if its distance
is below the threshold, as published. Rates are fractions in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The published thresholds on the squared distance of normalized embeddings.
GRID = np.arange(0, 4, 0.01)
GRID.setflags(write=False)
PAIRS_AT_ONCE = 48  # both sides in float64 at 512 dimensions: 0.4 MB


@dataclass(frozen=True)
class Roc:
    """Every operating point, strictest first.

    Points are counts, because the 15.7 M pairs of IJB-C would be 375 MB as rates.

    false_accepts: integers (K,), not decreasing, from 0 to the number of impostor pairs.
    true_accepts: integers (K,), not decreasing, from 0 to the number of genuine pairs.
    thresholds: (K,), decreasing from infinity; scores at or above a threshold are accepted.
    """

    false_accepts: np.ndarray
    true_accepts: np.ndarray
    thresholds: np.ndarray

    @property
    def impostors(self) -> int:
        return int(self.false_accepts[-1])

    @property
    def genuine(self) -> int:
        return int(self.true_accepts[-1])

    @property
    def far(self) -> np.ndarray:
        """False accept rate float64 (K,)."""
        return self.false_accepts / self.impostors

    @property
    def tar(self) -> np.ndarray:
        """True accept rate float64 (K,)."""
        return self.true_accepts / self.genuine


@dataclass(frozen=True)
class Folds:
    """Accuracy of each test fold, and the threshold chosen for it on the others, float64 (K,)."""

    accuracy: np.ndarray
    thresholds: np.ndarray

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracy))

    @property
    def std(self) -> float:
        """Population standard deviation over the folds, as published."""
        return float(np.std(self.accuracy))


def pair_distances(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared distances float64 (P,) of pairs of rows of the embeddings (N,D), normalized.

        |a/|a| - b/|b||² = 2 - 2 cos(a, b)

    They are never below 0. A zero row is not normalized, so its distance to a unit vector is 1.
    Both sides of 6,000 pairs are 49 MB in float64, and most of the time goes into moving them.
    Therefore all blocks of pairs are converted in the same memory, which stays in the cache.
    """
    rows = np.stack([first, second], 1)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(embeddings):
        raise IndexError(
            f"pairs name rows {rows.min()} to {rows.max()}, "
            f"but there are {len(embeddings)} embeddings"
        )
    # Each `take` would copy the whole of an array that is not contiguous.
    embeddings = np.ascontiguousarray(embeddings)

    # The pairs of .bin files are neighboring rows, so nothing must be gathered.
    neighbors = np.array_equal(rows.ravel(), np.arange(rows.size))
    gathered = np.empty((PAIRS_AT_ONCE, 2, embeddings.shape[1]), embeddings.dtype)
    sides = np.empty(gathered.shape)
    squares, products = np.empty(rows.shape), np.empty(len(rows))
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        here = slice(start, start + PAIRS_AT_ONCE)
        block = sides[: len(rows[here])]
        if neighbors:
            block[:] = embeddings[2 * start : 2 * (start + len(block))].reshape(block.shape)
        else:
            # Mode "raise" would copy twice.
            block[:] = embeddings.take(rows[here], 0, out=gathered[: len(block)], mode="clip")
        np.vecdot(block, block, out=squares[here])
        np.vecdot(block[:, 0], block[:, 1], out=products[here])

    # |a|² + |b|² is 2 for unit vectors, and one less for each zero row.
    aa, bb = squares.T
    norms = np.sqrt(aa * bb)
    cosines = np.divide(products, norms, out=products, where=norms != 0)
    distances: np.ndarray = np.maximum(np.add(aa != 0, bb != 0, dtype=np.float64) - 2 * cosines, 0)
    if broken := int(np.isnan(distances).sum()):
        raise ValueError(
            f"{broken} of {len(first)} pairs have an embedding that is not finite; "
            "has the model diverged?"
        )
    return distances


def fold_of(pairs: int, folds: int = 10) -> np.ndarray:
    """Fold number int64 (P,) of each pair.

    Folds are consecutive and unshuffled; the first P mod K have one pair more than the others.
    """
    if pairs < folds:
        raise ValueError(
            f"{pairs} pairs cannot be split into {folds} folds; give at least {folds} pairs"
        )
    sizes = np.full(folds, pairs // folds)
    sizes[: pairs % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def grid_accuracy(
    distances: np.ndarray, same: np.ndarray, *, folds: int = 10, grid: np.ndarray = GRID
) -> Folds:
    """The published protocol: each fold is judged at the threshold that is best on the others.

    distances: squared, (P,). same: bool (P,). grid: ascending thresholds. Of several best
    thresholds, the smallest is used. A pair is accepted if distance < threshold.
    """
    fold = fold_of(len(distances), folds)

    # Right decisions of each fold at each threshold, less its impostors. A pair is accepted from
    # the threshold of its bin on: one right decision more if it is genuine, else one less.
    bins = np.searchsorted(grid, distances, side="right")
    table = np.zeros((folds, len(grid) + 1), np.int64)
    np.add.at(table, (fold, bins), np.where(same, 1, -1))
    right = np.cumsum(table[:, :-1], axis=1)

    # The best threshold on all folds but the one that is judged.
    best = np.argmax(right.sum(0) - right, axis=1)
    impostors = np.bincount(fold[~same], minlength=folds)
    accuracy = (right[np.arange(folds), best] + impostors) / np.bincount(fold)
    return Folds(accuracy, grid[best])


def right_decisions(distances: np.ndarray, same: np.ndarray, *, folds: int = 10) -> np.ndarray:
    """Which pairs `grid_accuracy` judges correctly, bool (P,), each at the threshold of its fold.

    Their share is its mean accuracy, if all folds have equally many pairs.
    """
    thresholds = grid_accuracy(distances, same, folds=folds).thresholds
    right: np.ndarray = (distances < thresholds[fold_of(len(distances), folds)]) == same
    return right


def exact_accuracy(distances: np.ndarray, same: np.ndarray, *, folds: int = 10) -> Folds:
    """As `grid_accuracy`, but every distance of the other folds is a threshold.

    A pair is accepted if distance <= threshold. Of several best thresholds, the largest is used.
    The threshold is -inf if accepting no pair is better than every distance.
    """
    fold = fold_of(len(distances), folds)
    order = np.argsort(distances, kind="stable")
    values, gain, fold_sorted = distances[order], np.where(same, 1, -1)[order], fold[order]
    accuracy, thresholds = np.empty(folds), np.full(folds, -np.inf)
    for k in range(folds):
        # Right decisions on the other folds, less their impostors, at each distance that occurs.
        train = fold_sorted != k
        seen = values[train]
        ends = np.flatnonzero(np.append(seen[1:] != seen[:-1], True))
        right = np.cumsum(gain[train])[ends]

        # The last of the best distances; a negative count is worse than accepting no pair.
        best = len(right) - 1 - int(np.argmax(right[::-1]))
        if right[best] >= 0:
            thresholds[k] = seen[ends[best]]
        test = fold == k
        accuracy[k] = np.mean((distances[test] <= thresholds[k]) == same[test])
    return Folds(accuracy, thresholds)


def fold_tar(
    distances: np.ndarray, same: np.ndarray, far: float, *, folds: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """(TAR, FAR) of each fold, at the loosest threshold with FAR ≤ `far` on the other folds.

    Both are float64 (K,), NaN for a fold without such pairs. This is LFW's validation rate. Its
    published form interpolates a threshold on a grid, which fails where two grid points have equal
    FAR; this one counts.
    """
    fold = fold_of(len(distances), folds)
    tar, reached_far = np.full(folds, np.nan), np.full(folds, np.nan)
    for k in range(folds):
        test = fold == k
        threshold = strict_threshold(-distances[~test & ~same], far)
        for rates, kind in ((tar, same), (reached_far, ~same)):
            if (test & kind).any():
                rates[k] = np.mean(-distances[test & kind] > threshold)
    return tar, reached_far


def strict_threshold(impostors: np.ndarray, far: float) -> float:
    """The lowest score above which at most a share `far` of the impostors lies; -inf if all may."""
    first_refused = len(impostors) - 1 - allowed(far, len(impostors))
    if first_refused < 0:
        return -np.inf
    return float(np.partition(impostors, first_refused)[first_refused])


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
    """All operating points of scores (P,) with same bool (P,); equal scores make one point.

    The pairs must include both kinds. The points are those of scikit-learn's
    `roc_curve(drop_intermediate=False)`. 15.6 M float32 scores take 2 s.
    """
    genuine = int(np.count_nonzero(same))
    if genuine in (0, len(same)):
        kind = "genuine" if genuine == 0 else "impostor"
        raise ValueError(f"no {kind} pair among {len(same)}: a ROC needs both kinds")
    if broken := int(np.isnan(scores).sum()):
        raise ValueError(f"{broken} of {len(scores)} scores are NaN: an embedding is not finite")

    # One point after each run of equal scores. int32 and `del` keep the memory small.
    order = np.argsort(scores)[::-1]
    values, accepted = scores[order], np.cumsum(same[order], dtype=np.int32)
    del order
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True)).astype(np.int32)
    infinity = np.array([np.inf], values.dtype if values.dtype.kind == "f" else np.float64)
    true_accepts = np.append(np.int32(0), accepted[ends])
    false_accepts = np.append(np.int32(0), ends + 1) - true_accepts
    return Roc(false_accepts, true_accepts, np.append(infinity, values[ends]))


def auc(curve: Roc) -> float:
    """Area under the ROC: the probability that a genuine pair scores above an impostor pair.

    Equal scores count half.
    """
    # The trapezoids between neighboring points, twice their area, in whole numbers.
    true_accepts = curve.true_accepts.astype(np.int64)
    twice = np.sum(np.diff(curve.false_accepts) * (true_accepts[1:] + true_accepts[:-1]))
    return float(twice / 2 / curve.genuine / curve.impostors)


def eer(curve: Roc) -> float:
    """Equal error rate: where the ROC's straight segments cross FAR = 1 - TAR."""
    # FAR - (1 - TAR) rises from -1 to 1. Interpolate linearly where it crosses 0.
    gap = curve.far + curve.tar - 1
    k = int(np.argmax(gap >= 0))
    before, after = curve.false_accepts[k - 1], curve.false_accepts[k]
    return float((before - gap[k - 1] / (gap[k] - gap[k - 1]) * (after - before)) / curve.impostors)


def tar_at_far(curve: Roc, far: float) -> float:
    """The highest TAR at a threshold whose FAR does not exceed `far` (strict)."""
    k = np.searchsorted(curve.false_accepts, allowed(far, curve.impostors), side="right") - 1
    return float(curve.true_accepts[k] / curve.genuine)


def allowed(rate: float, count: int) -> int:
    """How many of `count` a rate allows: 1e-3 of 3000 is 3, even if the product rounds down."""
    return int(np.floor(rate * count + 1e-9))


def corners(curve: Roc) -> tuple[np.ndarray, np.ndarray]:
    """(far, tar) without the points inside straight runs, as scikit-learn's `drop_intermediate`.

    A point is dropped if the counts grow by the same steps before and after it. The origin, the
    first point after it and the last point always stay.
    """
    # A second difference of 0 in both counts means a straight run.
    keep = np.ones(len(curve.true_accepts), bool)
    keep[2:-1] = np.diff(curve.false_accepts[1:], 2) != 0
    keep[2:-1] |= np.diff(curve.true_accepts[1:], 2) != 0
    return curve.false_accepts[keep] / curve.impostors, curve.true_accepts[keep] / curve.genuine


def nearest_tar(curve: Roc, fars: Sequence[float]) -> list[float]:
    """TAR at the ROC corner nearest to each FAR, as IJB figures are published.

    The FAR of that corner may be higher. Of two corners that are equally near, the one with the
    higher FAR is used. Of corners at one FAR, the one with the highest TAR is used.
    """
    corner_fars, corner_tars = corners(curve)
    found = []
    for far in fars:
        # The nearest corner is next to the place of `far` in the ascending FARs.
        at = np.searchsorted(corner_fars, far)
        near = corner_fars[max(at - 1, 0) : at + 1]
        gaps = np.abs(near - far)
        best = near[len(gaps) - 1 - int(np.argmin(gaps[::-1]))]
        found.append(float(corner_tars[np.searchsorted(corner_fars, best, side="right") - 1]))
    return found
