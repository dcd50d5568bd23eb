"""The two data loaders of F²C (arXiv 2105.10375) as one order of images for the Loader.

A step with b identities has 3b images. The identity-based batch has two different images of each of
b identities (A₁ and A₂), and the instance-based batch has b images in two halves (I₁ and I₂). A
batch of the Loader holds them as [A₁ | I₁ | A₂ | I₂]; its halves of b + b/2 images each are

    x = A₁ ∪ I₁    and    y = A₂ ∪ I₂,    with x.labels[:b] == y.labels[:b].

An epoch is one pass over all images by the instance-based batches. It leaves out N mod b images,
different ones in each epoch. Identities come in shuffled rounds. Each round leaves out I mod b
identities, so the b identities of a step always differ. Each visit of an identity draws two
different images. An identity with one image gives it twice; the two copies are augmented
independently. If an image cannot be read, the Loader's stand-in is of the same person, or replaces
both images of the pair.

With `image_weight` w > 0 (ours, not published) the probability of an identity with n images is
proportional to n^w, and it may come twice in a step. Where most people have one or two images,
uniform draws would mostly pair an image with itself.
"""

from typing import Any

import numpy as np

from data.loader import Loader
from data.order import NOT_AT_RANDOM, ByIdentity, EpochOrder, Indices, shuffled
from data.types import FaceSet, Int64


def dual_order(
    labels: Int64, *, seed: int, epoch: int, identities: int, image_weight: float = 0.0
) -> Indices:
    """Indices of an epoch, (steps · 3b,) with b = `identities`: [A₁ | I₁ | A₂ | I₂] per step."""
    b = identities
    table = ByIdentity(labels)
    steps = len(labels) // b
    rng = np.random.default_rng([seed, epoch, 1])

    # The identities of all steps, (steps · b,). With weights, a uniform number picks the identity
    # in whose interval it falls: the intervals' lengths are the weights.
    if image_weight:
        reach = np.cumsum(table.counts.astype(np.float64) ** image_weight)
        picked = np.searchsorted(reach[:-1], rng.random(steps * b) * reach[-1], side="right")
    else:
        whole = len(table.counts) // b * b
        rounds = -(-steps * b // whole)
        permutations = [rng.permutation(len(table.counts))[:whole] for _ in range(rounds)]
        picked = np.concatenate(permutations)[: steps * b]

    # Two images of each identity. A shift of 1 to count - 1 places makes the second one differ.
    counts, starts = table.counts[picked], table.starts[picked]
    first = rng.integers(0, counts)
    second = (first + 1 + rng.integers(0, np.maximum(counts - 1, 1))) % counts

    # One row per step: [A₁ | I₁ | A₂ | I₂].
    a1 = table.order[starts + first].reshape(steps, b)
    a2 = table.order[starts + second].reshape(steps, b)
    instances = shuffled(len(labels), seed=seed, epoch=epoch)[: steps * b].reshape(steps, 2, b // 2)
    return np.concatenate([a1, instances[:, 0], a2, instances[:, 1]], axis=1).reshape(-1)


def dual_loader(
    faces: FaceSet, *, identities: int, seed: int, image_weight: float = 0.0, **options: Any
) -> Loader:
    """A Loader of batches of 3b images per rank.

    identities: b, an even number.
    options: the other options of Loader.
    """
    if getattr(faces, "blocks", None) is not None:
        raise ValueError(f"a class pool draws images at random, but {NOT_AT_RANDOM}")
    present = len(np.unique(faces.labels))
    if identities < 2 or identities % 2 or identities > present:
        raise ValueError(
            f"identities={identities}: expected an even number from 2 to the set's {present}"
        )

    def indices(epoch: int) -> Indices:
        return dual_order(
            faces.labels, seed=seed, epoch=epoch, identities=identities, image_weight=image_weight
        )

    batch_size = 3 * identities
    length = len(faces) // identities * batch_size
    order = EpochOrder(indices, length, group=batch_size)
    return Loader(faces, batch_size=batch_size, seed=seed, order=order, **options)


def single_image_identities(labels: Int64) -> int:
    """Number of identities with only one image, which a step therefore holds twice."""
    return int((np.unique(labels, return_counts=True)[1] == 1).sum())
