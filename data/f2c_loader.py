"""The two data loaders of F²C (arXiv 2105.10375) as one order of images for the Loader.

A step with b identities has 3b images. The identity-based batch has two different images of each of
b identities (A₁ and A₂), and the instance-based batch has b images in two halves (I₁ and I₂). A
batch of the Loader holds them as [A₁ | I₁ | A₂ | I₂]; its halves of b + b/2 images each are

    x = A₁ ∪ I₁    and    y = A₂ ∪ I₂,    with x.labels[:b] == y.labels[:b].

An epoch is one pass over all images by the instance-based batches. It leaves out N mod b images,
different ones in each epoch. Identities come in shuffled rounds. Each round leaves out I mod b
identities, so the b identities of a step always differ. data/pair_loader.py draws the two images of
an identity.

With `image_weight` w > 0 (ours, not published) the probability of an identity with n images is
proportional to n^w, and it may come twice in a step. Where most people have one or two images,
uniform draws would mostly pair an image with itself.
"""

from typing import Any

import numpy as np

from data.loader import Loader
from data.order import ByIdentity, EpochOrder, Indices, shuffled
from data.pair_loader import in_rounds, refuse_blocks, two_images
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
        present = len(table.counts)
        picked = in_rounds(present, steps * b, rng, per_round=present // b * b)

    # One row per step: [A₁ | I₁ | A₂ | I₂].
    a1, a2 = (images.reshape(steps, b) for images in two_images(table, picked, rng))
    instances = shuffled(len(labels), seed=seed, epoch=epoch)[: steps * b].reshape(steps, 2, b // 2)
    return np.concatenate([a1, instances[:, 0], a2, instances[:, 1]], axis=1).reshape(-1)


def dual_loader(
    faces: FaceSet, *, identities: int, seed: int, image_weight: float = 0.0, **options: Any
) -> Loader:
    """A Loader of batches of 3b images per rank.

    identities: b, an even number.
    options: the other options of Loader.
    """
    refuse_blocks(faces, "a class pool")
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
