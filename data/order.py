"""In which order the images of a set are seen: arrays of indices, a function of (seed, epoch) alone.

The order is global. Of each global batch rank r takes the r-th share, so the images of a step do not depend on how
many ranks divide them, and a position is one number: how many images of the epoch have been handed out by all ranks
together.
"""

from __future__ import annotations

import numpy as np


def index_dtype(count: int) -> type[np.signedinteger]:
    """int32 while it holds all indices, else int64."""
    return np.int32 if count < 2**31 else np.int64


def shuffled(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """A uniform permutation of range(count), (N,)."""
    order = np.arange(count, dtype=index_dtype(count))
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order


def block_shuffled(count: int, *, seed: int, epoch: int, block: int, mixed: int = 64) -> np.ndarray:
    """A permutation of range(count) for disks that seek slowly: blocks of `block` neighbours stay together.

    Blocks are shuffled, then images within each run of `mixed` blocks: a reader touches `mixed` places at a time, and
    the block boundaries shift from epoch to epoch. Set `block` to what the disk likes to read at once, in images.
    """
    rng = np.random.default_rng([seed, epoch])
    first = int(rng.integers(block))
    starts = np.concatenate([[0], np.arange(first if first else block, count, block)])
    order = np.empty(count, index_dtype(count))
    at = 0
    shuffled_starts = rng.permutation(starts)
    ends = dict(zip(starts.tolist(), [*starts[1:].tolist(), count], strict=True))
    for group in np.array_split(shuffled_starts, max(1, len(starts) // mixed)):
        members = np.concatenate([np.arange(start, ends[start]) for start in group.tolist()])
        order[at : at + len(members)] = rng.permutation(members)
        at += len(members)
    return order


def balanced(labels: np.ndarray, *, seed: int, epoch: int, images: int) -> np.ndarray:
    """P×K sampling: a list of groups of `images` (K) images of one identity, every identity in turn, N // K groups.

    Identities come in shuffled rounds. Within an identity images are dealt without repeating one before all were seen;
    an identity with fewer than K images repeats its own. Batches of P·K images hold P identities (fewer only where a
    round ends within a batch).
    """
    rng = np.random.default_rng([seed, epoch])
    by_identity = ByIdentity(labels)
    groups = len(labels) // images
    rounds = -(-groups // len(by_identity.counts))
    picked = np.concatenate([rng.permutation(len(by_identity.counts)) for _ in range(rounds)])[:groups]
    visit = np.repeat(np.arange(rounds), len(by_identity.counts))[:groups]
    start = rng.integers(0, by_identity.counts)[picked] + visit * images
    within = (start[:, None] + np.arange(images)) % by_identity.counts[picked][:, None]
    return by_identity.images(picked[:, None], within, rng).reshape(-1)


class ByIdentity:
    """Images grouped by identity as two flat arrays; identities without an image do not appear.

    identities (I,): the labels; counts (I,): images of each.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.order = np.argsort(labels, kind="stable").astype(index_dtype(len(labels)))
        self.identities, self.starts, self.counts = np.unique(
            labels[self.order], return_index=True, return_counts=True
        )

    def images(self, which: np.ndarray, within: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Index of the within-th image of identity which (rows of this table), in an order of images fixed by rng."""
        shuffled_order = self.order[np.lexsort((rng.random(len(self.order), np.float32), self._groups()))]
        return shuffled_order[self.starts[which] + within]

    def _groups(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.counts)), self.counts)


def share(batch: np.ndarray, *, rank: int, world: int) -> np.ndarray:
    """Rank r's part of a global batch (world · B,) -> (B,)."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]
