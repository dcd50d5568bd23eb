"""A center per identity in which images that do not fit count little, and what fits a center.

An image never votes for itself: its cosine with its own center leaves it out of that center.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.embed import normalized
from eval.search import give_back

BLOCK = 16_384  # rows at a time: 32 MB at D = 512
ROUNDS = 3


@dataclass(frozen=True)
class Centers:
    """One center per identity.

    vectors: float32 (C,D) of length 1; a zero row for an identity without images.
    sums: float32 (C,D), the weighted sums of the vectors, which have the same directions.
    weights: float32 (N,), the weight of each image in the sum of its identity, 0…1.
    own: float64 (N,), the cosine of each image with its own center, from which it is left out; 0
        for the only image of an identity.
    """

    vectors: np.ndarray
    sums: np.ndarray
    weights: np.ndarray
    own: np.ndarray


def robust_centers(
    vectors: np.ndarray, labels: np.ndarray, classes: int, *, rounds: int = ROUNDS
) -> Centers:
    """Centers of `classes` identities from vectors (N,D) of length 1 and their labels int64 (N,).

    In the first round all images weigh 1. In each later round an image weighs the square of its
    cosine with its own center, or 0 if that is negative, so that a minority of wrong images hardly
    moves a center. The weight of the only image of an identity is 1.

    The vectors may be memory-mapped. Besides the result, a few blocks of them are in memory.
    """
    weights = np.ones(len(labels), np.float32)
    sums = identity_sums(vectors, labels, weights, classes)
    own = own_cosines(vectors, labels, weights, sums)
    counts = np.bincount(labels, minlength=classes)
    for _ in range(rounds - 1):
        fits = np.maximum(own, 0) ** 2
        # An identity whose images do not fit at all keeps equal weights.
        lost = np.bincount(labels, fits, classes) == 0
        weights = np.where(lost[labels] | (counts[labels] == 1), 1, fits).astype(np.float32)
        sums = identity_sums(vectors, labels, weights, classes)
        own = own_cosines(vectors, labels, weights, sums)
    return Centers(normalized(sums), sums, weights, own)


def identity_sums(
    vectors: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int
) -> np.ndarray:
    """The weighted sum of the vectors of each identity, float32 (classes,D)."""
    sums = np.zeros((classes, vectors.shape[1]), np.float32)
    for here in _blocks(len(labels)):
        order = np.argsort(labels[here], kind="stable")
        own = labels[here][order]
        weighted = vectors[here][order] * weights[here][order, None]
        first = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
        sums[own[first]] += np.add.reduceat(weighted, first, axis=0)
        give_back(vectors)
    return sums


def own_cosines(
    vectors: np.ndarray, labels: np.ndarray, weights: np.ndarray, sums: np.ndarray
) -> np.ndarray:
    """Cosine of each image with the sum of its identity without the image itself, float64 (N,)."""
    own = np.zeros(len(labels))
    for here in _blocks(len(labels)):
        block = np.asarray(vectors[here], np.float32)
        rest = sums[labels[here]] - weights[here, None] * block
        lengths = np.linalg.norm(rest, axis=1)
        # What rounding leaves of an identity with one image is no direction.
        left = lengths > 1e-4
        np.divide(np.vecdot(block, rest), lengths, out=own[here], where=left)
        give_back(vectors)
    return own


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))
