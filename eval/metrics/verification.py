"""Verification and identification figures from plain arrays: sorting and counting, no
interpolation, no grids to miss.

A score is a similarity: higher means more alike. A pair is accepted where its score is at or above
a threshold, and for squared distances (the ten-fold protocol) where the distance is below it, as
published. Rates are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# the published thresholds on the squared distance of normalized embeddings
GRID = np.arange(0, 4, 0.01)
GRID.setflags(write=False)
PAIRS_AT_ONCE = 48  # both sides in float64 at 512 dimensions: 0.4 MB


@dataclass(frozen=True)
class Roc:
    """Every operating point, strictest first, as counts: the 15.7 M pairs of IJB-C would be 375 MB
    as rates.

    false_accepts, true_accepts: integers (K,), non-decreasing, from 0 to the number of impostor and
    genuine pairs. thresholds: (K,), decreasing, the first one inf: scores at or above it are
    accepted.
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
    """Accuracy of each test fold, float64 (K,), and the threshold chosen for it on the other
    folds."""

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
    """Squared distances float64 (P,) of the normalized embeddings (N,D) of each pair of rows, 2 - 2
    cos.

    Never below 0; a zero row counts as it is, unnormalized. Both sides of 6,000 pairs are 49 MB in
    float64, and moving them is the cost: they are widened a block at a time into the same memory,
    which stays in the cache.
    """
    rows = np.stack([first, second], 1)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(embeddings):
        raise IndexError(
            f"pairs name rows {rows.min()} to {rows.max()}, but there are {len(embeddings)} embeddings"
        )
    # take would copy all of another array at each call
    embeddings = np.ascontiguousarray(embeddings)
    # as .bin files have them: nothing to gather
    neighbors = np.array_equal(rows.ravel(), np.arange(rows.size))
    gathered = np.empty((PAIRS_AT_ONCE, 2, embeddings.shape[1]), embeddings.dtype)
    sides = np.empty(gathered.shape)
    squares, products = np.empty(rows.shape), np.empty(len(rows))
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        block = sides[: len(rows[part])]
        if neighbors:
            block[:] = embeddings[2 * start : 2 * (start + len(block))].reshape(block.shape)
        else:
            # "raise" copies twice
            block[:] = embeddings.take(rows[part], 0, out=gathered[: len(block)], mode="clip")
        np.vecdot(block, block, out=squares[part])
        np.vecdot(block[:, 0], block[:, 1], out=products[part])
    aa, bb = squares.T
    norms = np.sqrt(aa * bb)
    cosines = np.divide(products, norms, out=products, where=norms != 0)
    distances = np.maximum(np.add(aa != 0, bb != 0, dtype=np.float64) - 2 * cosines, 0)
    if np.isnan(distances).any():
        raise ValueError(
            f"{int(np.isnan(distances).sum())} of {len(first)} pairs hold an embedding that is not finite"
        )
    return distances


def fold_of(pairs: int, folds: int = 10) -> np.ndarray:
    """Fold number int64 (P,) of each pair: consecutive and unshuffled, the first P mod K folds one
    pair longer."""
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
    """The published protocol: the threshold of `grid` that is best on the other folds, the smallest
    of several.

    distances (P,) squared, same bool (P,), grid ascending. Accepted is distance < threshold. A
    fold's counts at all thresholds are one cumulative histogram: a pair is accepted from its own
    bin on.
    """
    fold = fold_of(len(distances), folds)
    bins = np.searchsorted(grid, distances, side="right")
    # accepting a genuine pair makes one more right, accepting an impostor one less
    gain = np.where(same, 1, -1)
    table = np.zeros((folds, len(grid) + 1), np.int64)
    np.add.at(table, (fold, bins), gain)
    right = np.cumsum(table[:, :-1], axis=1)
    impostors = np.bincount(fold[~same], minlength=folds)
    best = np.argmax(right.sum(0) - right, axis=1)
    accuracy = (right[np.arange(folds), best] + impostors) / np.bincount(fold)
    return Folds(accuracy, grid[best])


def exact_accuracy(distances: np.ndarray, same: np.ndarray, *, folds: int = 10) -> Folds:
    """As `grid_accuracy`, with every distance of the other folds as a threshold (accepted is
    distance <= threshold).

    The threshold is the largest that is best on the other folds; -inf (accept none) where all are
    worse than that.
    """
    fold = fold_of(len(distances), folds)
    order = np.argsort(distances, kind="stable")
    values, gain, fold_sorted = distances[order], np.where(same, 1, -1)[order], fold[order]
    accuracy, thresholds = np.empty(folds), np.full(folds, -np.inf)
    for k in range(folds):
        train = fold_sorted != k
        seen = values[train]
        # equal distances are accepted together
        ends = np.flatnonzero(np.append(seen[1:] != seen[:-1], True))
        right = np.cumsum(gain[train])[ends]
        best = len(right) - 1 - int(np.argmax(right[::-1]))
        if right[best] >= 0:
            thresholds[k] = seen[ends[best]]
        test = fold == k
        accuracy[k] = np.mean((distances[test] <= thresholds[k]) == same[test])
    return Folds(accuracy, thresholds)


def fold_tar(
    distances: np.ndarray, same: np.ndarray, far: float, *, folds: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Validation rate: (TAR, FAR) of each test fold at the largest threshold whose FAR on the other
    folds is <= `far`.

    The published form interpolates a threshold on a grid, which fails where two grid points have
    equal FAR; this one counts. float64 (K,) each, NaN for a fold without such pairs.
    """
    fold = fold_of(len(distances), folds)
    tar, got = np.full(folds, np.nan), np.full(folds, np.nan)
    for k in range(folds):
        test = fold == k
        threshold = strict_threshold(-distances[~test & ~same], far)
        for rates, kind in ((tar, same), (got, ~same)):
            if (test & kind).any():
                rates[k] = np.mean(-distances[test & kind] > threshold)
    return tar, got


def strict_threshold(impostors: np.ndarray, far: float) -> float:
    """Score that must be exceeded so that at most a share `far` of the impostors is accepted."""
    allowed = _allowed(far, len(impostors))
    if allowed >= len(impostors):
        return -np.inf
    return float(
        np.partition(impostors, len(impostors) - 1 - allowed)[len(impostors) - 1 - allowed]
    )


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
    """All operating points of scores (P,) with same bool (P,); equal scores make one point. Needs
    both kinds of pair.

    Same points as scikit-learn's `roc_curve(drop_intermediate=False)`. Sorts once; 15.6 M float32
    scores take 2 s.
    """
    genuine = int(np.count_nonzero(same))
    if genuine in (0, len(same)):
        kind = "genuine" if genuine == 0 else "impostor"
        raise ValueError(f"no {kind} pair among {len(same)}: a ROC needs both kinds")
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN: an embedding is not finite"
        )
    order = np.argsort(scores)[::-1]
    values, accepted = scores[order], np.cumsum(same[order], dtype=np.int32)
    del order
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True)).astype(np.int32)
    infinity = np.array([np.inf], values.dtype if values.dtype.kind == "f" else np.float64)
    true_accepts = np.append(np.int32(0), accepted[ends])
    false_accepts = np.append(np.int32(0), ends + 1) - true_accepts
    return Roc(false_accepts, true_accepts, np.append(infinity, values[ends]))


def auc(curve: Roc) -> float:
    """Area under the ROC: the chance that a genuine pair scores above an impostor, ties counting
    half."""
    true_accepts = curve.true_accepts.astype(np.int64)
    twice = np.sum(np.diff(curve.false_accepts) * (true_accepts[1:] + true_accepts[:-1]))
    return float(twice / 2 / curve.genuine / curve.impostors)


def eer(curve: Roc) -> float:
    """Equal error rate: where the ROC's straight segments cross FAR = 1 - TAR."""
    gap = curve.far + curve.tar - 1  # rises from -1 to 1
    k = int(np.argmax(gap >= 0))
    before, after = curve.false_accepts[k - 1], curve.false_accepts[k]
    return float((before - gap[k - 1] / (gap[k] - gap[k - 1]) * (after - before)) / curve.impostors)


def tar_at_far(curve: Roc, far: float) -> float:
    """Strict: the highest TAR at a threshold whose FAR does not exceed `far`."""
    k = np.searchsorted(curve.false_accepts, _allowed(far, curve.impostors), side="right") - 1
    return float(curve.true_accepts[k] / curve.genuine)


def _allowed(rate: float, count: int) -> int:
    """How many of `count` a rate allows; 1e-3 of 3000 is 3, whatever the rounding of their
    product."""
    return int(np.floor(rate * count + 1e-9))


def corners(curve: Roc) -> tuple[np.ndarray, np.ndarray]:
    """(far, tar) without the points inside straight runs: scikit-learn's `drop_intermediate`, for
    the published rule.

    Dropped is a point where the counts grow alike before and after it; never the first above the
    origin.
    """
    keep = np.ones(len(curve.true_accepts), bool)
    keep[2:-1] = np.diff(curve.false_accepts[1:], 2) != 0
    keep[2:-1] |= np.diff(curve.true_accepts[1:], 2) != 0
    return curve.false_accepts[keep] / curve.impostors, curve.true_accepts[keep] / curve.genuine


def nearest_tar(curve: Roc, fars: Sequence[float]) -> list[float]:
    """As IJB figures are published: for each FAR, TAR of the ROC corner nearest to it, which may
    lie above it.

    Of corners equally near the one with the higher FAR counts, of those at one FAR the one with the
    highest TAR.
    """
    corner_fars, corner_tars = corners(curve)
    found = []
    for far in fars:
        at = np.searchsorted(corner_fars, far)
        near = corner_fars[max(at - 1, 0) : at + 1]
        gaps = np.abs(near - far)
        best = near[len(gaps) - 1 - int(np.argmin(gaps[::-1]))]
        found.append(float(corner_tars[np.searchsorted(corner_fars, best, side="right") - 1]))
    return found
