"""The order of a set's images, as arrays of indices that depend on (seed, epoch) alone.

The order is global. Rank r gets the r-th slice of each global batch, so the images of a step do
not depend on the number of ranks. A position in the order is therefore one number: how many images
of the epoch all ranks together have handed out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.types import Int64

Indices = NDArray[np.signedinteger[Any]]
NOT_AT_RANDOM = (
    "the set's images lie in compressed groups that are read as a whole, so that a random order "
    "would read a group for each image; choose python -m tools.convert SET TARGET.zip"
)
BALANCED_IMAGES = 4  # images per identity in a batch of the balanced order
MIXED = 64  # blocks whose images are shuffled together


@dataclass(frozen=True)
class Blocks:
    """Runs of neighboring images that a set reads as a whole; the attribute `blocks` of such a set.

    starts: int64, the first image of each block, in rising order from 0. mixed: blocks that memory
    holds at a time.
    """

    starts: Int64
    mixed: int


@dataclass(frozen=True)
class EpochOrder:
    """What a Loader needs to know about an order of images.

    indices: returns the indices of a whole epoch (length,) for all ranks together.
    length: images per epoch.
    group: images that belong together; a batch holds whole groups.
    """

    indices: Callable[[int], Indices]
    length: int
    group: int = 1


def index_dtype(count: int) -> np.dtype[np.signedinteger[Any]]:
    """int32 if it can hold all indices of `count` images, else int64."""
    return np.dtype(np.int32 if count < 2**31 else np.int64)


def shuffled(count: int, *, seed: int, epoch: int) -> Indices:
    """A uniform permutation of range(count), (N,)."""
    order = np.arange(count, dtype=index_dtype(count))
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order


def block_shuffled(count: int, *, seed: int, epoch: int, block: int, mixed: int = MIXED) -> Indices:
    """A permutation of range(count) for disks that seek slowly: blocks of images stay together.

    Blocks are shuffled first, and then the images within each run of `mixed` blocks, so a reader
    works in `mixed` places at a time. The boundaries of blocks move from epoch to epoch. `block` is
    the number of neighboring images that the disk reads well at once.
    """
    rng = np.random.default_rng([seed, epoch])

    # The first block has a random length, and all others but the last have `block` images.
    first = int(rng.integers(block))
    starts = np.concatenate([[0], np.arange(first if first else block, count, block)])
    return _mix_blocks(rng, starts, count, mixed)


def shuffled_blocks(blocks: Blocks, count: int, *, seed: int, epoch: int) -> Indices:
    """As `block_shuffled`, for the blocks of a set, whose boundaries stay."""
    return _mix_blocks(np.random.default_rng([seed, epoch]), blocks.starts, count, blocks.mixed)


def _mix_blocks(rng: np.random.Generator, starts: Int64, count: int, mixed: int) -> Indices:
    """A permutation of range(count) in which blocks stay together."""
    shuffled_starts = rng.permutation(starts)
    ends = dict(zip(starts.tolist(), [*starts[1:].tolist(), count], strict=True))

    # Within each run of `mixed` blocks, the images of all its blocks are shuffled together.
    order = np.empty(count, index_dtype(count))
    at = 0
    for run in np.array_split(shuffled_starts, max(1, len(starts) // mixed)):
        members = np.concatenate([np.arange(start, ends[start]) for start in run.tolist()])
        order[at : at + len(members)] = rng.permutation(members)
        at += len(members)
    return order


def balanced(labels: Int64, *, seed: int, epoch: int, images: int) -> Indices:
    """P×K sampling: N // K groups of K = `images` images of one identity, flat (groups · K,).

    P·K consecutive images hold P identities. Identities come in shuffled rounds, so a batch across
    the end of a round may hold one of them twice. Each epoch shuffles the images of an identity.
    A visit continues where the visit of the round before stopped, and an identity with fewer than K
    images repeats them.
    """
    rng = np.random.default_rng([seed, epoch])
    table = ByIdentity(labels)
    groups, identities = len(labels) // images, len(table.counts)

    # Each group gets an identity; `visit` says how often the epoch met that identity before.
    rounds = -(-groups // identities)
    picked = np.concatenate([rng.permutation(identities) for _ in range(rounds)])[:groups]
    visit = np.repeat(np.arange(rounds), identities)[:groups]

    # A visit uses the next K images of its identity, and goes on with the first after the last.
    within = (visit[:, None] * images + np.arange(images)) % table.counts[picked][:, None]
    places = table.starts[picked][:, None] + within

    # Sorting by identity and then by a random number shuffles the images of each identity.
    draws = rng.random(len(labels), np.float32)
    dealt = table.order[np.lexsort((draws, labels[table.order]))]
    order: Indices = dealt[places].reshape(-1)
    return order


class ByIdentity:
    """Images grouped by identity: those of the i-th are order[starts[i] : starts[i] + counts[i]].

    Identities without an image do not appear.
    """

    def __init__(self, labels: Int64) -> None:
        self.order = np.argsort(labels, kind="stable").astype(index_dtype(len(labels)))
        _, self.starts, self.counts = np.unique(
            labels[self.order], return_index=True, return_counts=True
        )


def named_order(
    labels: Int64,
    name: str,
    *,
    seed: int,
    batch_size: int,
    block: int = 256,
    images: int = BALANCED_IMAGES,
    blocks: Blocks | None = None,
) -> EpochOrder:
    """The order with a name of a YAML file: shuffled, block or balanced.

    batch_size: images per rank and step.
    block: images that a slow disk reads well at once.
    images: K of P×K sampling; batch_size must be a multiple of it.
    blocks: those of the set, if it has some. Only the order `block` reads such a set.
    """
    count = len(labels)
    if blocks is not None:
        if name != "block":
            raise ValueError(f"data.order: found {name}, but {NOT_AT_RANDOM} or data.order=block")
        return EpochOrder(
            lambda epoch: shuffled_blocks(blocks, count, seed=seed, epoch=epoch), count
        )
    if name == "shuffled":
        return EpochOrder(lambda epoch: shuffled(count, seed=seed, epoch=epoch), count)
    if name == "block":
        return EpochOrder(
            lambda epoch: block_shuffled(count, seed=seed, epoch=epoch, block=block), count
        )
    if name == "balanced":
        if images < 1 or batch_size % images:
            raise ValueError(
                f"optim.batch_size: found {batch_size}, expected a multiple of the {images} images "
                "that this order keeps together"
            )
        return EpochOrder(
            lambda epoch: balanced(labels, seed=seed, epoch=epoch, images=images),
            length=count // images * images,
            group=images,
        )
    raise ValueError(f"order {name!r}: expected shuffled, block or balanced")


def slice_for_rank(batch: Indices, *, rank: int, world: int) -> Indices:
    """The slice (B,) of a global batch (world · B,) that belongs to one rank."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]
