"""Identities that are two people: their images fall into two groups that are too far apart.

What the groups of two people under one label look like is known from the set itself: pairs of
identities are joined, and divided by the same rule. `eval.cleaning.cut` compares both
distributions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from eval.cleaning.cut import Cut, find_cut
from eval.embed import Progress, normalized, not_shown
from eval.search import give_back

AT_LEAST = 3  # images of each person
LEAST_SHARE = 0.2  # of the identity's images: fewer are wrong images, not a person
PRECISION = 0.9
ROUNDS = 10
JOINED = 2000  # pairs of identities that are joined at most: enough for a distribution


@dataclass(frozen=True)
class Splits:
    """What `find_splits` found in C identities.

    identities: int64 (K,), the labels that are probably two people, the surest first.
    second: bool (N,), the images of the smaller group of each of them; False for all others.
    labels: int64 (C',), all labels that have enough images to be two people.
    apart: float64 (C',), how far apart the two groups of each of them are: see `two_groups`.
    joined: float64 (J,), the same of pairs of identities that were joined.
    cut: the threshold, on -apart.
    """

    identities: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    apart: np.ndarray
    joined: np.ndarray
    cut: Cut


def find_splits(
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    precision: float = PRECISION,
    seed: int = 0,
    progress: Progress = not_shown,
) -> Splits:
    """Find labels that are two people from vectors (N,D) of length 1 and labels int64 (N,).

    precision: expected share of the found ones that are two people, 0…1. seed: of the pairs that
    are joined. progress: shows how many of the N images are done.

    The images of one identity, or of two, are in memory at a time; the vectors may be mapped.
    """
    order = np.argsort(labels, kind="stable")
    present, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rows = np.split(order, starts[1:])
    large = np.flatnonzero(counts >= 2 * AT_LEAST)
    apart, seconds = np.empty(len(large)), []
    with progress(len(labels)) as advance:
        for place, identity in enumerate(large):
            apart[place], second = two_groups(vectors[rows[identity]])
            seconds.append(rows[identity][second])
            give_back(vectors)
            advance(len(rows[identity]))
        advance(len(labels) - int(counts[large].sum()))
    joined = _joined(vectors, rows, large, seed)
    cut = find_cut(-apart, -joined, precision)
    found = np.flatnonzero(-apart <= cut.threshold)
    found = found[np.argsort(-apart[found], kind="stable")]
    second = np.zeros(len(labels), bool)
    second[_together(seconds[place] for place in found)] = True
    return Splits(present[large[found]], second, present[large], apart, joined, cut)


def two_groups(vectors: np.ndarray) -> tuple[float, np.ndarray]:
    """Divide vectors (n,D) in two groups: how far apart they are, and the smaller one, bool (n,).

    The groups begin as the two sides of the largest variance and are then the images that are
    nearer to the one or the other mean. How far apart they are is the mean cosine of two images of
    one group, in the less coherent one, minus that of two images of different groups. Two people
    are two coherent groups, and wrong images under a label are none.

    A group of fewer than AT_LEAST images, or of less than LEAST_SHARE of them, is no person: the
    result is then -inf and an empty group.
    """
    block = np.asarray(vectors, np.float64)
    side = _largest_variance(block - block.mean(0)) > 0
    for _ in range(ROUNDS):
        if not 0 < np.count_nonzero(side) < len(side):
            break
        means = normalized(np.stack([block[~side].mean(0), block[side].mean(0)]))
        cosines = block @ means.T
        now = cosines[:, 1] > cosines[:, 0]
        if (now == side).all():
            break
        side = now
    if 2 * np.count_nonzero(side) > len(side):
        side = ~side
    sizes = np.array([np.count_nonzero(~side), np.count_nonzero(side)])
    if sizes[1] < max(AT_LEAST, LEAST_SHARE * len(side)):
        return -np.inf, np.zeros(len(side), bool)
    sums = np.stack([block[~side].sum(0), block[side].sum(0)])
    # A sum's square holds the products of all ordered pairs, and of each image with itself.
    within = (np.vecdot(sums, sums) - sizes) / (sizes * (sizes - 1))
    return float(within.min() - sums[0] @ sums[1] / sizes.prod()), side


def _largest_variance(around: np.ndarray) -> np.ndarray:
    """Coordinates of the rows (n,D) along the direction of their largest variance, float64 (n,)."""
    if len(around) <= around.shape[1]:
        coordinates: np.ndarray = np.linalg.eigh(around @ around.T)[1][:, -1]
    else:
        coordinates = around @ np.linalg.eigh(around.T @ around)[1][:, -1]
    return coordinates


def _joined(
    vectors: np.ndarray, rows: list[np.ndarray], large: np.ndarray, seed: int
) -> np.ndarray:
    """How far apart the groups of two people are, whose labels were joined, float64 (J,)."""
    drawn = np.random.default_rng(seed).permutation(large)
    found = []
    for one, other in zip(drawn[:JOINED], np.roll(drawn, 1)[:JOINED], strict=True):
        if one != other:
            found.append(two_groups(vectors[np.concatenate([rows[one], rows[other]])])[0])
            give_back(vectors)
    return np.array(found)


def _together(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts])
