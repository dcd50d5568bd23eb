"""Fewer images per identity: those whose probability of the true identity differs, or random ones.

DiffProb (Caldeira et al., arXiv 2505.15272, section III): the images of an identity are ordered by
p(true), the probability that a trained classifier gives to their identity, and the most probable
one is kept. Going down, an image is kept if its p(true) is lower than that of the last kept one by
more than t. Where fewer than five images are left, t is lowered by steps of 1 % for that identity.

What differs from the paper: it chooses t by hand, and here t follows from the share of images that
is wanted. Its p(true) comes from the weights and the margin of the classifier, and here it comes
from centers of embeddings, without a margin, so that any model serves; an image does not count in
its own center. Its cleaned variant drops images whose most probable identity is another one;
`eval.cleaning.noise` does that here.
"""

from dataclasses import dataclass

import numpy as np

from eval.cleaning.centers import robust_centers
from eval.embed import Progress, not_shown
from eval.search import give_back

AT_LEAST = 5
SCALE = 64.0  # of the softmax, as in the paper
STEPS = 100  # 1 % each
HALVINGS = 40  # of the interval that holds t
ROWS, COLUMNS = 4096, 4096  # products at a time: 64 MB


def true_probabilities(
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    scale: float = SCALE,
    progress: Progress = not_shown,
) -> np.ndarray:
    """p(true) of each image, float64 (N,): the softmax of scale · cosine over all identities.

    vectors: (N,D) of length 1, which may be memory-mapped. labels: int64 (N,). The own cosine
    leaves the image itself out of its center. progress: shows how many of the N images are done.
    """
    present, identity = np.unique(labels, return_inverse=True)
    centers = robust_centers(vectors, identity, len(present))
    found = np.empty(len(vectors))
    with progress(len(vectors)) as advance:
        for start in range(0, len(vectors), ROWS):
            here = slice(start, start + ROWS)
            block = np.asarray(vectors[here], np.float32)
            # Cosines are at most 1, so that scale · (cosine - 1) does not overflow.
            others = np.zeros(len(block))
            for column in range(0, len(present), COLUMNS):
                there = slice(column, column + COLUMNS)
                powers = block @ centers.vectors[there].T
                powers -= 1
                powers *= scale
                np.exp(powers, out=powers)
                mine = np.flatnonzero(identity[here] // COLUMNS == column // COLUMNS)
                powers[mine, identity[here][mine] - column] = 0
                others += powers.sum(1, dtype=np.float64)
            own = np.exp(scale * (centers.own[here] - 1))
            found[here] = own / (own + others)
            give_back(vectors)
            advance(len(block))
    return found


def prune_by_difference(
    probabilities: np.ndarray, labels: np.ndarray, keep: float, *, at_least: int = AT_LEAST
) -> np.ndarray:
    """Rows to keep, int64 (M,) in rising order; M is as near to keep · N as a t can bring it.

    probabilities: p(true), float64 (N,). labels: int64 (N,). keep: share of the images, 0…1.
    at_least: images that each identity keeps, or all if it has fewer; this may make M larger.
    """
    ordered = _ordered(probabilities, labels)
    wanted = keep * len(labels)
    low, high = -1.0, 1.0  # t below 0 keeps all images, t = 1 keeps one per identity
    tries = [_kept(ordered, t, at_least) for t in (low, high)]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        kept = _kept(ordered, middle, at_least)
        above = np.count_nonzero(kept) > wanted
        low, high = (middle, high) if above else (low, middle)
        tries[0 if above else 1] = kept
    best = min(tries, key=lambda kept: abs(np.count_nonzero(kept) - wanted))
    found: np.ndarray = np.sort(ordered.rows[best]).astype(np.int64)
    return found


def prune_at_random(
    labels: np.ndarray, keep: float, *, seed: int = 0, at_least: int = AT_LEAST
) -> np.ndarray:
    """Rows to keep, int64 (M,) in rising order: a share `keep` of the images of each identity.

    labels: int64 (N,). Each identity keeps at_least images, or all if it has fewer. The numbers are
    rounded so that all identities together keep that share.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(labels)), labels))
    counts = np.unique(labels, return_counts=True)[1]
    # Rounding the running sum loses no image, as rounding each number would.
    shares = np.diff(np.rint(np.cumsum(counts) * keep), prepend=0)
    kept = np.minimum(np.maximum(shares, at_least), counts)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    found: np.ndarray = np.sort(order[place < np.repeat(kept, counts)]).astype(np.int64)
    return found


@dataclass(frozen=True)
class _Ordered:
    """Images by identity, large identities first, and by falling p(true) within an identity.

    rows: int64 (N,). values: p(true), float64 (N,). starts, counts: int64 (C,).
    """

    rows: np.ndarray
    values: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def _ordered(probabilities: np.ndarray, labels: np.ndarray) -> _Ordered:
    _, identity, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.lexsort((-probabilities, identity, -counts[identity]))
    counts = np.sort(counts)[::-1]
    return _Ordered(rows, probabilities[rows], np.cumsum(counts) - counts, counts)


def _kept(ordered: _Ordered, t: float, at_least: int) -> np.ndarray:
    """Which images are kept, bool (N,), after t was lowered where too few were."""
    if t < 0:
        return np.ones(len(ordered.rows), bool)
    # The lower t is, the more are kept. Find the first step of 1 % that keeps enough.
    low, high = np.zeros(len(ordered.counts), int), np.full(len(ordered.counts), STEPS)
    kept = _spread(ordered, np.full(len(low), t))
    high[_numbers(ordered, kept) >= at_least] = 0
    while (low < high).any():
        middle = (low + high) // 2
        enough = _numbers(ordered, _spread(ordered, t * (1 - middle / STEPS))) >= at_least
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    kept = _spread(ordered, t * (1 - high / STEPS))
    # Images of equal p(true) are not told apart by any t: the first ones are kept.
    short = np.repeat(_numbers(ordered, kept) < at_least, ordered.counts)
    place = np.arange(len(kept)) - np.repeat(ordered.starts, ordered.counts)
    kept |= short & (place < at_least)
    return kept


def _spread(ordered: _Ordered, t: np.ndarray) -> np.ndarray:
    """Which images are kept, bool (N,), with the t of each identity (C,)."""
    kept = np.zeros(len(ordered.rows), bool)
    last = np.full(len(t), np.inf)
    for place in range(int(ordered.counts[0])):
        # Identities are sorted by size, so those that have an image here come first.
        live = int(np.searchsorted(-ordered.counts, -place, side="left"))
        here = ordered.starts[:live] + place
        lower = last[:live] - ordered.values[here] > t[:live]
        kept[here] = lower
        last[:live] = np.where(lower, ordered.values[here], last[:live])
    return kept


def _numbers(ordered: _Ordered, kept: np.ndarray) -> np.ndarray:
    """Images that each identity keeps, int64 (C,)."""
    found: np.ndarray = np.add.reduceat(kept, ordered.starts, dtype=np.int64)
    return found
