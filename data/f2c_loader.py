"""F²C's two data loaders (arXiv 2105.10375) as one order of images for the Loader.

A step of b takes 3b images: an identity-based batch of b identities, two different images of each
(A₁, A₂), and an instance-based batch of b images, halved (I₁, I₂). In a loader's batch they lie as
[A₁ | I₁ | A₂ | I₂]:

    x = A₁ ∪ I₁    and    y = A₂ ∪ I₂    of b + b/2 images each, the batch's halves; x.labels[:b] ==
    y.labels[:b].

An epoch is one pass over all images by the instance half (the last N mod b are left out, other ones
each epoch). Identities come in shuffled rounds; each round leaves out the last I mod b so that the
b identities of a step always differ. The two images of an identity are drawn anew at each visit,
without equal ones; an identity of one image gives it twice (augmentation draws for each image of a
batch, so those two are mirrored independently).

With `image_weight` w > 0 (ours, not published) an identity of n images is drawn in proportion to
n^w instead, and may come twice in a step. Where most people have an image or two, uniform draws
mostly pair an image with itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.loader import Loader
from data.order import ByIdentity, index_dtype, shuffled
from data.types import FaceSet


def dual_order(
    labels: np.ndarray, *, seed: int, epoch: int, identities: int, image_weight: float = 0.0
) -> np.ndarray:
    """Indices of an epoch, (steps · 3b,) with b = `identities`, each 3b in a row [A₁ | I₁ | A₂ |
    I₂]."""
    b = identities
    table = ByIdentity(labels)
    steps = len(labels) // b
    rng = np.random.default_rng([seed, epoch, 1])
    if image_weight:
        reach = np.cumsum(table.counts.astype(np.float64) ** image_weight)
        picked = np.searchsorted(reach[:-1], rng.random(steps * b) * reach[-1], side="right")
    else:
        whole = len(table.counts) // b * b
        rounds = -(-steps * b // whole)
        picked = np.concatenate(
            [rng.permutation(len(table.counts))[:whole] for _ in range(rounds)]
        )[: steps * b]
    counts, starts = table.counts[picked], table.starts[picked]
    first = rng.integers(0, counts)
    second = (first + 1 + rng.integers(0, np.maximum(counts - 1, 1))) % counts
    instances = shuffled(len(labels), seed=seed, epoch=epoch)[: steps * b].reshape(steps, 2, b // 2)
    order = np.empty((steps, 3 * b), index_dtype(len(labels)))
    order[:, :b] = table.order[starts + first].reshape(steps, b)
    order[:, b : b + b // 2] = instances[:, 0]
    order[:, b + b // 2 : -(b // 2)] = table.order[starts + second].reshape(steps, b)
    order[:, -(b // 2) :] = instances[:, 1]
    return order.reshape(-1)


def dual_loader(
    faces: FaceSet, *, identities: int, seed: int, image_weight: float = 0.0, **options: Any
) -> Loader:
    """A Loader of batches of 3b images; b = `identities` a rank, even. options: as Loader takes
    them."""
    present = len(np.unique(faces.labels))
    if identities < 2 or identities % 2 or identities > present:
        raise ValueError(
            f"identities={identities}: expected an even number, 2 or more, at most the set's {present}"
        )
    return Loader(
        faces,
        batch_size=3 * identities,
        seed=seed,
        order=lambda epoch: dual_order(
            faces.labels, seed=seed, epoch=epoch, identities=identities, image_weight=image_weight
        ),
        length=len(faces) // identities * 3 * identities,
        group=3 * identities,
        **options,
    )


def single_image_identities(labels: np.ndarray) -> int:
    """How many identities have one image only, and so give it twice."""
    return int((np.unique(labels, return_counts=True)[1] == 1).sum())
