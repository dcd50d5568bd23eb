"""Tells one face set from another by labels, image keys and sizes, without reading an image.

A checkpoint holds the fingerprint of its run's set. A resumed run compares it with that of its own
set: the same files in another place have the same fingerprint.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data.images import Images
from data.text import one_line
from data.types import FaceSet, Int64

AT_ONCE = 1 << 16  # images whose numbers stay in the cache of a core
# The constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), and an odd one for the sizes.
_STEP, _FIRST, _SECOND = (
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_SIZE = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Fingerprint:
    """What a set holds.

    digest: over label, key and size of all images in their order; it decides whether two sets are
        the same. sums: int64 (identities,), one number per identity over keys and sizes of its
        images in any order; they tell where two sets differ.
    """

    images: int
    identities: int
    digest: str
    sums: Int64 = field(compare=False)

    def state_dict(self) -> dict[str, Any]:
        """The fingerprint as a checkpoint holds it: plain values and a tensor."""
        return {
            "images": self.images,
            "identities": self.identities,
            "digest": self.digest,
            "sums": torch.from_numpy(self.sums),
        }


def fingerprint_of(faces: FaceSet) -> Fingerprint:
    """The fingerprint of a set whose labels are 0…num_classes - 1.

    It uses `keys_and_sizes`. For a set without keys it is one of the labels alone.
    """
    images = len(faces)
    keys, sizes = keys_and_sizes(faces)
    sums = np.zeros(faces.num_classes, np.uint64)
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, images, AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        labels = faces.labels[rows]
        table = np.stack([labels, keys[rows], sizes[rows]]).astype("<i8")
        digest.update(table.data)
        np.add.at(sums, labels, _mixed(*table[1:].view(np.uint64)))
    return Fingerprint(images, faces.num_classes, digest.hexdigest(), sums.view(np.int64))


def stored_fingerprint(state: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint that `state_dict` gave; KeyError or TypeError for another mapping."""
    return Fingerprint(
        int(state["images"]), int(state["identities"]), str(state["digest"]), state["sums"].numpy()
    )


def difference(before: Fingerprint, now: Fingerprint, faces: FaceSet) -> str | None:
    """What differs between an earlier set and the present one, in one line; None if nothing does.

    now: the fingerprint of `faces`, which gives the names.
    """
    if before == now:
        return None
    facts = []
    for what in ("images", "identities"):
        old, new = getattr(before, what), getattr(now, what)
        if old != new:
            facts.append(f"it had {old:,} {what} and has {new:,}")
    shared = min(before.identities, now.identities)
    differing = np.flatnonzero(before.sums[:shared] != now.sums[:shared])
    if len(differing):
        first = int(differing[0])
        others = f", and so are {len(differing) - 1:,} others" if len(differing) > 1 else ""
        facts.append(f"{_identity(faces, first)} is not the same{others}")
    elif not facts:
        facts.append("it has the same images of each identity, but in another order")
    return "; ".join(facts)


def _identity(faces: FaceSet, label: int) -> str:
    """An identity's label, with its name or its first image."""
    names, rows = getattr(faces, "names", None), np.flatnonzero(faces.labels == label)
    if names is not None:
        called = f" ({names[label]})"
    else:
        called = f" ({faces.describe(int(rows[0]))})" if len(rows) else " (without images)"
    return one_line(f"identity {label}{called}")


def keys_and_sizes(faces: Images) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays (N,) of whole numbers that tell the images of a set apart: keys, and bytes.

    Zeros for a set that has no method of this name.
    """
    own = getattr(faces, "keys_and_sizes", None)
    if own is None:
        nothing = np.broadcast_to(np.int64(0), len(faces))
        return nothing, nothing
    keys, sizes = own()
    return keys, sizes


def _mixed(keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """uint64 (N,): each key with its size, mixed as SplitMix64 mixes its state."""
    mixed: np.ndarray = keys * _STEP + sizes * _SIZE + _STEP
    mixed ^= mixed >> np.uint64(30)
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed
