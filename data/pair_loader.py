"""Pairs of images of one person: how F²C (data/f2c_loader.py) and SST draw them.

People come in shuffled rounds. Each visit of a person draws two different images in random order,
so either image of a person with two may be the first. A person with one image gives it twice; the
two copies are augmented independently. If an image cannot be read, the Loader's stand-in is of the
same person, or replaces both images of the pair.

A step of SST with b pairs has 2b images, [A₁ | A₂], with A₁.labels == A₂.labels. An epoch has half
as many pairs as the set has images, so it shows as many images as the set has. Which pairs come
does not depend on b.
"""

import logging
from typing import Any

import numpy as np

from data.loader import Loader
from data.order import NOT_AT_RANDOM, ByIdentity, EpochOrder, Indices
from data.types import FaceSet, Int64

USED_TWICE = "which is used as both images of a pair"
"""What becomes of the only image of a person, for the log."""
log = logging.getLogger(__name__)


def in_rounds(identities: int, count: int, rng: np.random.Generator, *, per_round: int) -> Indices:
    """(count,) numbers below `identities`: shuffled rounds of `per_round` different ones."""
    rounds = -(-count // per_round)
    permutations = [rng.permutation(identities)[:per_round] for _ in range(rounds)]
    return np.concatenate(permutations)[:count]


def two_images(
    table: ByIdentity, picked: Indices, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Two images of each picked identity: different ones, unless it has only one."""
    counts, starts = table.counts[picked], table.starts[picked]
    first = rng.integers(0, counts)
    # A shift of 1 to count - 1 places makes the second one differ.
    second = (first + 1 + rng.integers(0, np.maximum(counts - 1, 1))) % counts
    return table.order[starts + first], table.order[starts + second]


def pair_order(
    labels: Int64, *, seed: int, epoch: int, pairs: int, leave_out_single: bool = False
) -> Indices:
    """Indices of an epoch, (steps · 2b,) with b = `pairs`: [A₁ | A₂] per step.

    leave_out_single: people with one image do not come.
    """
    table = ByIdentity(labels)
    visited = np.flatnonzero(table.counts > 1 if leave_out_single else table.counts)
    rng = np.random.default_rng([seed, epoch, 1])
    picked = visited[in_rounds(len(visited), len(labels) // 2, rng, per_round=len(visited))]
    steps = len(labels) // (2 * pairs)
    first, second = (
        images[: steps * pairs].reshape(steps, pairs) for images in two_images(table, picked, rng)
    )
    return np.concatenate([first, second], axis=1).reshape(-1)


def pair_loader(
    faces: FaceSet, *, pairs: int, seed: int, leave_out_single: bool = False, **options: Any
) -> Loader:
    """A Loader of batches of 2b images per rank, b = `pairs`.

    options: the other options of Loader.
    """
    refuse_blocks(faces, "semi-siamese training")

    def indices(epoch: int) -> Indices:
        return pair_order(
            faces.labels, seed=seed, epoch=epoch, pairs=pairs, leave_out_single=leave_out_single
        )

    length = len(faces) // (2 * pairs) * 2 * pairs
    order = EpochOrder(indices, length, group=2 * pairs)
    return Loader(faces, batch_size=2 * pairs, seed=seed, order=order, **options)


def refuse_blocks(faces: FaceSet, who: str) -> None:
    """ValueError for a set whose images can't be read in random order."""
    if getattr(faces, "blocks", None) is not None:
        raise ValueError(f"{who} draws images at random, but {NOT_AT_RANDOM}")


def single_image_identities(labels: Int64) -> int:
    """Number of identities with only one image."""
    return int((np.unique(labels, return_counts=True)[1] == 1).sum())


def tell_single_images(faces: FaceSet, what: str) -> None:
    """Log how many identities have one image, and what becomes of it."""
    if single := single_image_identities(faces.labels):
        log.info("%d of %d identities have one image, %s", single, faces.num_classes, what)
