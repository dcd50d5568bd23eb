"""Identities that are one person: their centers are nearer than two people's centers are.

What the centers of one person under two labels look like is known from the set itself: the images
of an identity are halved at random, and each half gets a center. `eval.cleaning.cut` compares both
distributions.

What all centers have in common says nothing, so their mean is subtracted first. Centers in a
crowded region are near to many others. The similarity of two centers is therefore their cosine
minus the median cosine of either with its own neighbors (cross-domain similarity local scaling;
Conneau et al., Word translation without parallel data, ICLR 2018, equation 4, there with twice the
cosine, and with means, which a person under three labels would raise).
"""

from dataclasses import dataclass

import numpy as np

from eval.cleaning.centers import robust_centers
from eval.cleaning.cut import Cut, find_cut
from eval.embed import Progress, normalized, not_shown
from eval.search import top_matches

PRECISION = 0.9
NEIGHBORS = 10  # of each center, of which the first is the candidate and the others the crowd
LEAST = 4  # images of an identity that is halved
HALVED = 2000  # identities that are halved at most: enough for a distribution


@dataclass(frozen=True)
class Merges:
    """What `find_merges` found in C identities.

    pairs: int64 (K,2), labels that are probably one person, the surest first; the lower label
        first. similarities: float64 (K,).
    target: dict of each label in `pairs` to the lowest label of the same person.
    nearest: float64 (C,), the similarity of each identity with the one most similar to it.
    halves: float64 (J,), the similarities of halved identities.
    cut: the threshold, on -similarity.
    """

    pairs: np.ndarray
    similarities: np.ndarray
    target: dict[int, int]
    nearest: np.ndarray
    halves: np.ndarray
    cut: Cut


def find_merges(
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    precision: float = PRECISION,
    seed: int = 0,
    progress: Progress = not_shown,
) -> Merges:
    """Find labels that are one person from vectors (N,D) of length 1 and labels int64 (N,).

    precision: expected share of the found identities that are under two labels, 0…1. seed: of the
    halves. progress: shows how many of the C identities are done.

    Each identity is compared with its nearest one. A person under three labels is found as two or
    three pairs. The vectors may be memory-mapped. ValueError if there are fewer than two labels.
    """
    present, identity, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise ValueError(f"found {len(present)} identities, expected at least 2")
    centers = robust_centers(vectors, identity, len(present)).vectors
    middle = centers.mean(0)
    centers = normalized(centers - middle)
    every = np.arange(len(present))
    near = top_matches(centers, centers, NEIGHBORS, other_than=(every, every), progress=progress)
    crowd = _crowd(near.scores[:, 1:])
    similarity = near.scores - (crowd[:, None] + crowd[near.rows]) / 2
    similarity[near.rows < 0] = -np.inf
    best = similarity.argmax(1)
    nearest, other = similarity[every, best], near.rows[every, best]
    halves = _halves(vectors, identity, counts, centers, middle, seed)
    cut = find_cut(-nearest, -halves, precision)
    found = np.flatnonzero(-nearest <= cut.threshold)
    pairs = np.sort(np.stack([found, other[found]], 1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    surest = nearest[found][first]
    order = np.argsort(-surest, kind="stable")
    pairs = present[pairs[order]]
    return Merges(pairs, surest[order], lowest_labels(pairs), nearest, halves, cut)


def lowest_labels(pairs: np.ndarray) -> dict[int, int]:
    """Each label in pairs int64 (K,2) -> the lowest label that a chain of pairs leads to."""
    lowest: dict[int, int] = {}

    def root(label: int) -> int:
        while lowest.setdefault(label, label) != label:
            label = lowest[label]
        return label

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        lowest[high] = low
    return {label: root(label) for label in list(lowest)}


def _crowd(scores: np.ndarray) -> np.ndarray:
    """Median cosine of each center with these neighbors (C,K), float64 (C,); 0 without any."""
    there = np.isfinite(scores)
    alone = ~there.any(1)
    values = np.where(there, scores, np.nan)
    values[alone] = 0
    median: np.ndarray = np.nanmedian(values, axis=1) if values.shape[1] else np.zeros(len(values))
    return median


def _halves(
    vectors: np.ndarray,
    identity: np.ndarray,
    counts: np.ndarray,
    centers: np.ndarray,
    middle: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Similarities of the two halves of identities, float64 (J,), among all other centers."""
    rng = np.random.default_rng(seed)
    halved = rng.permutation(np.flatnonzero(counts >= LEAST))[:HALVED]
    if not len(halved):
        return np.empty(0)
    place = np.full(len(counts), -1)
    place[halved] = np.arange(len(halved))
    rows = np.flatnonzero(place[identity] >= 0)
    rows = rows[np.lexsort((rng.random(len(rows)), place[identity[rows]]))]
    own = place[identity[rows]]
    sizes = counts[halved]
    within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    half = own + len(halved) * (2 * within >= np.repeat(sizes, sizes))
    both = robust_centers(vectors[rows], half, 2 * len(halved)).vectors
    both = normalized(both - middle)
    near = top_matches(
        both, centers, NEIGHBORS, other_than=(np.tile(halved, 2), np.arange(len(counts)))
    )
    # Beside its other half, a half has one neighbor more than the crowd counts.
    crowd = _crowd(near.scores[:, : NEIGHBORS - 1])
    one, other = both[: len(halved)], both[len(halved) :]
    cosines = np.vecdot(one.astype(np.float64), other.astype(np.float64))
    found: np.ndarray = cosines - (crowd[: len(halved)] + crowd[len(halved) :]) / 2
    return found
