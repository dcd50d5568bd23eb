"""Exact search: the k gallery vectors with the largest inner products, for each probe.

The products of blocks are computed in float32, which is fast but rounds. Entries whose float32
product may belong to the first k are computed again in float64, and only those products decide.

Which ones may belong to them follows from the error of a float32 product. A sum of D products,
added in any order, differs from the true one by at most γ·|a|·|b| (Higham, Accuracy and Stability
of Numerical Algorithms, equation 3.5):

    γ = D·u / (1 - D·u),    u = 2⁻²⁴ for float32 and 2⁻⁵³ for float64.

Let ε be the sum of both bounds, and s the k-th largest float64 product so far. An entry whose
float32 product is less than s - ε has a float64 product less than s, so it is none of the first k.
Within one block, where no float64 product is known yet, the k-th largest float32 product t takes
the place of s: k entries are at least t - ε in float64, so only those at least t - 2ε in float32
may be among the first k.
"""

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.embed import Progress, not_shown

PROBES, ENTRIES = 4096, 4096  # rows of a block: 64 MB of products
PAIRS = 4096  # pairs whose vectors are in float64 at a time: 16 MB a side at D = 512
CROWDED = 16  # more entries than this and 4k pass at first only where the gallery begins
GROUPS = 64  # of the entries of a block
LONGEST = 1.001  # a vector of length 1 whose numbers were rounded, even to float16

Ids = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Matches:
    """The best entries of each probe, best first; the lower row first where two are equal.

    rows: int64 (Q,k), rows of the gallery; -1 where fewer than k entries may be found.
    scores: float64 (Q,k), inner products; -inf for row -1.
    """

    rows: np.ndarray
    scores: np.ndarray


def top_matches(
    probes: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    other_than: Ids | None = None,
    progress: Progress = not_shown,
) -> Matches:
    """The k largest inner products of each probe (Q,D) with the gallery (G,D), in float64 order.

    The rows must be float16 or float32 and have length 1, or 0; then an inner product is a cosine.
    A longer row or one that is not finite raises ValueError. If G < k, the result has G columns.

    Both may be memory-mapped. Besides the result and a few blocks (about 200 MB at D = 512) nothing
    is held in memory, and pages of a map are given back after each block. The search takes hardly
    longer than the float32 products alone.

    other_than: identities int64 (Q,), (G,); entries with the identity of the probe are passed over.
    progress: shows how many of the Q probes are done.
    """
    if probes.ndim != 2 or gallery.ndim != 2 or probes.shape[1] != gallery.shape[1] or k < 1:
        raise ValueError(
            f"search of the best {k} for probes {probes.shape} in a gallery {gallery.shape}; "
            "expected at least 1, and (Q,D) and (G,D) with the same D"
        )
    k = min(k, len(gallery))
    rows, scores = np.empty((len(probes), k), np.int64), np.empty((len(probes), k))
    memory = np.empty((min(PROBES, len(probes)), min(ENTRIES, len(gallery))), np.float32)
    with progress(len(probes)) as advance:
        for start in range(0, len(probes), PROBES):
            here = slice(start, start + PROBES)
            block = _block(probes, here).copy()
            give_back(probes)
            ids = (other_than[0][here], other_than[1]) if other_than else None
            rows[here], scores[here] = _search_block(block, gallery, k, ids, memory)
            advance(len(block))
    return Matches(rows, scores)


def rounding_bound(dimension: int) -> float:
    """ε: how far a float32 product of two rows of length 1 may lie from their float64 product."""
    errors = (dimension * unit / (1 - dimension * unit) for unit in (2.0**-24, 2.0**-53))
    return LONGEST**2 * sum(errors)


def _search_block(
    probes: np.ndarray, gallery: np.ndarray, k: int, ids: Ids | None, memory: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores (q,k) of one block of probes. memory: float32, for a block of products."""
    rows = np.full((len(probes), k), -1, np.int64)
    scores = np.full((len(probes), k), -np.inf)
    epsilon = rounding_bound(probes.shape[1])
    floor = np.full(len(probes), -np.inf, np.float32)  # no lower product can be among the first k
    for start in range(0, len(gallery), ENTRIES):
        here = slice(start, start + ENTRIES)
        entries = _block(gallery, here)
        products = np.matmul(probes, entries.T, out=memory[: len(probes), : len(entries)])
        if ids:
            products[_equal_ids(ids[0], ids[1][here])] = -np.inf
        hit = np.flatnonzero(products.max(1) >= floor)
        if 4 * len(hit) > len(products):  # then a copy costs more than to look at all
            hit = np.arange(len(products))
        near = products if len(hit) == len(products) else products[hit]
        row, entry = _may_be_first(near, floor[hit], k, 2 * epsilon)
        exact = _exact_products(probes, hit[row], entries, entry)
        rows[hit], scores[hit] = _merge(rows[hit], scores[hit], row, start + entry, exact)
        floor[hit] = _below(scores[hit, -1] - epsilon)
        give_back(gallery)
    return rows, scores


def _equal_ids(probes: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column int64 (M,), (M,) of each pair of a probe (q,) and an entry (g,) of one id."""
    order = np.argsort(entries, kind="stable")
    first, last = (np.searchsorted(entries, probes, side, order) for side in ("left", "right"))
    counts = last - first
    row = np.repeat(np.arange(len(probes)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, order[first[row] + place]


def _may_be_first(
    products: np.ndarray, floor: np.ndarray, k: int, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column int64 (M,) of each product (q,g) that may be among the first k of its row."""
    lowest = floor.copy()
    if (floor > -np.inf).any():
        may = products >= floor[:, None]
        crowded = np.flatnonzero(np.count_nonzero(may, axis=1) > 4 * k + CROWDED)
    else:  # the gallery begins, and all entries would pass
        may, crowded = np.empty(products.shape, bool), np.arange(len(products))
    if len(crowded):
        near = products if len(crowded) == len(products) else products[crowded]
        reached = _reached_by(near, k).astype(np.float64)
        lowest[crowded] = np.maximum(floor[crowded], _below(reached - margin))
        may[crowded] = near >= lowest[crowded, None]
    free = np.flatnonzero(lowest == -np.inf)  # fewer than k entries may be found so far
    may[free] &= products[free] > -np.inf
    places = np.flatnonzero(may)  # 15 times faster than nonzero of two dimensions
    return places // products.shape[1], places % products.shape[1]


def _reached_by(products: np.ndarray, k: int) -> np.ndarray:
    """A number for each row that at least k of its products (q,g) reach, float32 (q,).

    It is the k-th largest of the maxima of disjoint groups: these are products of the row, and
    finding them is far quicker than finding the k-th largest product.
    """
    count = products.shape[1]
    if count < k:
        return np.full(len(products), -np.inf, np.float32)
    if 4 * k <= GROUPS <= count // 2:
        size = count // GROUPS
        products = products[:, : GROUPS * size].reshape(len(products), size, GROUPS).max(1)
    if k == 1:
        best: np.ndarray = products.max(1)
        return best
    kth = products.shape[1] - k
    found: np.ndarray = np.partition(products, kth, axis=1)[:, kth]
    return found


def _exact_products(
    probes: np.ndarray, row: np.ndarray, entries: np.ndarray, entry: np.ndarray
) -> np.ndarray:
    """Inner products float64 (M,) of pairs of rows. Equal pairs have equal products."""
    found = np.empty(len(row))
    for start in range(0, len(row), PAIRS):
        here = slice(start, start + PAIRS)
        one, other = probes[row[here]].astype(np.float64), entries[entry[here]].astype(np.float64)
        np.vecdot(one, other, out=found[here])
    return found


def _merge(
    rows: np.ndarray, scores: np.ndarray, row: np.ndarray, entry: np.ndarray, exact: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first k of the matches (q,k) so far and of new ones (M,) together, in order."""
    count, k = rows.shape
    owner = np.concatenate([np.repeat(np.arange(count), k), row])
    entries = np.concatenate([rows.ravel(), entry])
    values = np.concatenate([scores.ravel(), exact])
    order = np.lexsort((entries, -values, owner))
    # Each probe has at least k, so its first k follow the place where it begins.
    first = np.searchsorted(owner[order], np.arange(count))
    kept = order[first[:, None] + np.arange(k)]
    return entries[kept], values[kept]


def _below(values: np.ndarray) -> np.ndarray:
    """float32 numbers that are not above these float64 ones."""
    lower: np.ndarray = np.nextafter(values.astype(np.float32), np.float32(-np.inf))
    return lower


def _block(vectors: np.ndarray, here: slice) -> np.ndarray:
    """Rows as float32, without a copy if they are; ValueError for a wrong one."""
    block = np.ascontiguousarray(vectors[here], np.float32)
    squares = np.vecdot(block, block)
    wrong = np.flatnonzero(~(squares <= LONGEST**2))
    if len(wrong):
        raise ValueError(
            f"vector {here.start + int(wrong[0])} has the squared length "
            f"{float(squares[wrong[0]]):.4g}; expected 1: divide the rows by their lengths"
        )
    return block


def give_back(vectors: np.ndarray) -> None:
    """Drop the pages of a map from this process. They stay in the cache of the system."""
    pages: Any = getattr(vectors, "_mmap", None)
    if isinstance(vectors, np.memmap) and vectors.mode == "r" and hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_DONTNEED)
