"""In which order the images of a set are seen: arrays of indices, a function of (seed, epoch)
alone.

The order is global. Of each global batch rank r takes the r-th share, so the images of a step do
not depend on how many ranks divide them, and a position is one number: how many images of the epoch
have been handed out by all ranks together.
"""

from __future__ import annotations

from typing import Any

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
    """A permutation of range(count) for disks that seek slowly: blocks of `block` neighbors stay
    together.

    Blocks are shuffled, then images within each run of `mixed` blocks: a reader touches `mixed`
    places at a time, and the block boundaries shift from epoch to epoch. Set `block` to what the
    disk likes to read at once, in images.
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
    """P×K sampling: N // K groups of K = `images` images of one identity, flat. P·K images in a row
    hold P identities.

    Identities come in shuffled rounds (a batch over the seam of two rounds may meet one twice). An
    identity deals its images in an order shuffled for the epoch and goes on where it stopped the
    round before; one that has fewer than K repeats them.
    """
    rng = np.random.default_rng([seed, epoch])
    table = ByIdentity(labels)
    groups, identities = len(labels) // images, len(table.counts)
    rounds = -(-groups // identities)
    picked = np.concatenate([rng.permutation(identities) for _ in range(rounds)])[:groups]
    visit = np.repeat(np.arange(rounds), identities)[:groups]
    within = (visit[:, None] * images + np.arange(images)) % table.counts[picked][:, None]
    dealt = table.order[np.lexsort((rng.random(len(labels), np.float32), labels[table.order]))]
    return dealt[table.starts[picked][:, None] + within].reshape(-1)


class ByIdentity:
    """Images grouped by identity: images of the i-th are order[starts[i] : starts[i] + counts[i]].

    Identities without an image do not appear.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.order = np.argsort(labels, kind="stable").astype(index_dtype(len(labels)))
        _, self.starts, self.counts = np.unique(
            labels[self.order], return_index=True, return_counts=True
        )


def named_order(
    labels: np.ndarray, name: str, *, seed: int, batch_size: int, block: int = 256, images: int = 4
) -> dict[str, Any]:
    """Loader's order, length and group for a name in a YAML file: shuffled, block or balanced.

    block: images that a slow disk reads at once. images: K of P×K; batch_size (a rank) must be a
    multiple of it.
    """
    count = len(labels)
    if name == "shuffled":
        return {
            "order": lambda epoch: shuffled(count, seed=seed, epoch=epoch),
            "length": count,
            "group": 1,
        }
    if name == "block":
        if block < 1:
            raise ValueError(f"block={block}: expected 1 image or more")
        return {
            "order": lambda epoch: block_shuffled(count, seed=seed, epoch=epoch, block=block),
            "length": count,
            "group": 1,
        }
    if name == "balanced":
        if images < 1 or batch_size % images:
            raise ValueError(
                f"images={images}: a balanced batch of {batch_size} must be a multiple of it"
            )
        return {
            "order": lambda epoch: balanced(labels, seed=seed, epoch=epoch, images=images),
            "length": count // images * images,
            "group": images,
        }
    raise ValueError(f"order {name!r}: expected shuffled, block or balanced")


def share(batch: np.ndarray, *, rank: int, world: int) -> np.ndarray:
    """Rank r's part of a global batch (world · B,) -> (B,)."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]
