"""The same picture more than once: equal bytes anywhere, or near-equal embeddings.

Near-equal embeddings are looked for within each identity, and between it and the identities whose
centers are nearest to its own: elsewhere a copy would have to look like somebody else.
"""

from dataclasses import dataclass

import numpy as np

from eval.cleaning.centers import Centers
from eval.embed import Progress, not_shown
from eval.search import give_back, top_matches

NEIGHBORS = 5  # nearest identities
BLOCK = 1024  # rows of the products within an identity
READ = 16_384  # rows of a map that are read before its pages are given back


@dataclass(frozen=True)
class Duplicates:
    """Images that others stand for, and the others.

    rows: int64 (M,), the images that repeat one; those with equal bytes first, then those with the
        largest cosine.
    kept: int64 (M,), the image that each repeats. It is in no other pair's `rows`.
    cosines: float64 (M,), of each pair; 1 for equal bytes.
    equal: bool (M,), whether the bytes are equal.
    nearest: float32 (N',), the largest cosine of each image with another one of its identity, whose
        bytes differ.
    """

    rows: np.ndarray
    kept: np.ndarray
    cosines: np.ndarray
    equal: np.ndarray
    nearest: np.ndarray


def find_duplicates(
    vectors: np.ndarray,
    labels: np.ndarray,
    digests: np.ndarray,
    centers: Centers,
    threshold: float,
    *,
    neighbors: int = NEIGHBORS,
    progress: Progress = not_shown,
) -> Duplicates:
    """Find repeated images among vectors (N,D) of length 1 with labels 0…C-1, int64 (N,).

    digests: uint8 (N,16), of each image's bytes. centers: of the identities, see `robust_centers`.
    threshold: cosine from which two images are near-equal. neighbors: how many nearest identities
    of each are compared with it. progress: shows how many of the N images are done, twice.

    Of images that are equal, the one that fits its identity best is kept, and the first one if
    several fit alike. The vectors may be memory-mapped; in memory are a few numbers per image, and
    the vectors of one identity with its neighbors.
    """
    of = np.full(len(labels), -1, np.int64)  # what each image repeats
    by_fit = np.lexsort((np.arange(len(labels)), -centers.own))
    _equal_bytes(digests, by_fit, of)
    identities = _Identities(vectors, labels, by_fit)
    nearest = np.full(len(labels), np.nan, np.float32)
    with progress(len(labels)) as advance:
        for one in range(identities.count):
            _within(identities, one, threshold, of, nearest)
            advance(identities.size(one))
    if identities.count > 1:
        pairs = _across(identities, centers, threshold, of, neighbors, progress)
        _resolve(pairs, centers.own, of)
    rows = np.flatnonzero(of >= 0)
    kept = of[rows]
    while (more := of[kept] >= 0).any():  # what an image repeats may repeat another one
        kept = np.where(more, of[kept], kept)
    equal, cosines = (digests[rows] == digests[kept]).all(1), _cosines(vectors, rows, kept)
    order = np.lexsort((rows, -cosines, ~equal))
    nearest = nearest[~np.isnan(nearest)]
    return Duplicates(rows[order], kept[order], cosines[order], equal[order], nearest)


def _staying(rows: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Those of the rows that repeat none."""
    found: np.ndarray = rows[of[rows] < 0]
    return found


def _cosines(vectors: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines of pairs of rows, float64 (M,)."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        here = slice(start, start + BLOCK)
        pair = (vectors[side[here]].astype(np.float64) for side in (rows, others))
        found[here] = np.vecdot(*pair)
    return found


class _Identities:
    """The vectors of each identity, those that fit it best first."""

    def __init__(self, vectors: np.ndarray, labels: np.ndarray, by_fit: np.ndarray) -> None:
        self.vectors = vectors
        self.order = by_fit[np.argsort(labels[by_fit], kind="stable")]
        self.ends = np.cumsum(np.bincount(labels))
        self.count = len(self.ends)
        self._read = 0

    def size(self, one: int) -> int:
        return int(self.ends[one] - (self.ends[one - 1] if one else 0))

    def rows(self, one: int) -> np.ndarray:
        found: np.ndarray = self.order[self.ends[one] - self.size(one) : self.ends[one]]
        return found

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Their vectors, float32."""
        block = np.asarray(self.vectors[rows], np.float32)
        self._read += len(rows)
        if self._read > READ:
            give_back(self.vectors)
            self._read = 0
        return block


def _equal_bytes(digests: np.ndarray, by_fit: np.ndarray, of: np.ndarray) -> None:
    """Of the images with one digest, all but the best repeat the best."""
    keys = np.ascontiguousarray(digests).view("V16")[:, 0]
    order = by_fit[np.argsort(keys[by_fit], kind="stable")]
    new = np.r_[True, keys[order][1:] != keys[order][:-1]]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    of[order[~new]] = first[~new]


def _within(
    identities: _Identities, one: int, threshold: float, of: np.ndarray, nearest: np.ndarray
) -> None:
    """From the best image of an identity to the worst: one that is near a kept one repeats it."""
    rows = _staying(identities.rows(one), of)
    if len(rows) < 2:
        return
    block = identities.read(rows)
    for start in range(0, len(rows), BLOCK):
        here = np.arange(start, min(start + BLOCK, len(rows)))
        products = block[here] @ block.T
        products[here - start, here] = -np.inf
        nearest[rows[here]] = products.max(1)
        for place in np.flatnonzero(products.max(1) >= threshold).tolist():
            # Only images before this one can make it a repetition.
            before = rows[: start + place]
            near = np.where(of[before] < 0, products[place, : len(before)], -np.inf)
            best = int(near.argmax()) if len(near) else -1
            if best >= 0 and near[best] >= threshold:
                of[rows[start + place]] = before[best]


def _across(
    identities: _Identities,
    centers: Centers,
    threshold: float,
    of: np.ndarray,
    neighbors: int,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Near-equal images of neighboring identities: int64 (P,), int64 (P,), cosines (P,)."""
    every = np.arange(identities.count)
    found = top_matches(centers.vectors, centers.vectors, neighbors, other_than=(every, every)).rows
    empty = np.empty(0, np.int64)
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(empty, empty, np.empty(0))]
    with progress(len(of)) as advance:
        for one in every.tolist():
            # Two identities that are neighbors of each other are compared once.
            near = [
                identities.rows(other)
                for other in found[one].tolist()
                if other >= 0 and (other > one or one not in found[other])
            ]
            rows = _staying(identities.rows(one), of)
            if near and len(rows):
                beside = _staying(np.concatenate(near), of)
                products = identities.read(rows) @ identities.read(beside).T
                row, column = np.nonzero(products >= threshold)
                pairs.append((rows[row], beside[column], products[row, column].astype(float)))
            advance(identities.size(one))
    ones, others, cosines = map(np.concatenate, zip(*pairs, strict=True))
    return ones, others, cosines


def _resolve(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray], fit: np.ndarray, of: np.ndarray
) -> None:
    """Of each pair of which both still stay, the one that fits its identity less repeats the other.

    The most similar pairs come first.
    """
    for place in np.argsort(-pairs[2], kind="stable").tolist():
        one, other = int(pairs[0][place]), int(pairs[1][place])
        if of[one] < 0 and of[other] < 0:
            worse, better = sorted((one, other), key=lambda row: (fit[row], -row))
            of[worse] = better
