"""Five landmarks per face, as shares of the side of the crop that shows it.

Shares are float32 (5,2), x before y: 0 is the outer edge of the crop's first pixels, and 1 that of
its last, so they stay the same when the crop is resized. The middle of pixel p of S is at (p+½)/S.
The points are the eyes, the nose tip and the corners of the mouth; those on the left side of the
image come first.

A set has them in a file beside it, whatever its format: FOLDER/landmarks.npy for a folder, and
FILE.landmarks.npy for a file. Each row has the mark of its image, made of the name or number and
the size in bytes, so it is found again when other images are added or deleted. An image without a
row, and one whose row is NaN, has no landmarks. Parquet may have a column instead. Nothing is read
before a network asks for landmarks.
"""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from data.align import MIRRORED, TEMPLATE, similarity
from data.arrays import read_npy
from data.files import atomic_write
from data.fingerprint import keys_and_sizes
from data.images import Images

Landmarks = NDArray[np.float32]
"""float32 (N,5,2), shares of the side."""
ROW = np.dtype([("mark", "<i8"), ("points", "<f4", (5, 2))])
MIX = 1_000_003  # a prime, so that a change of the key never looks like one of the size
FARTHEST = 2.0  # a landmark may lie outside the crop, but not far
MAKE = "python -m tools.landmarks"


def as_shares(points: ArrayLike, size: ArrayLike) -> Landmarks:
    """float32 (…,5,2): landmarks in pixels of a crop as shares of its side.

    size: pixels per side, or (width, height).
    """
    shares: NDArray[np.float64] = (np.asarray(points, np.float64) + 0.5) / np.asarray(size)
    return shares.astype(np.float32)


TEMPLATE_SHARES = as_shares(TEMPLATE, 112)
"""Where an exactly aligned crop has its landmarks, float32 (5,2)."""
TEMPLATE_SHARES.setflags(write=False)


def in_crop(landmarks: ArrayLike, size: int) -> Landmarks:
    """float32 (5,2): where landmarks (5,2), in pixels of a photo, lie in `align`'s crop of it."""
    matrix = similarity(landmarks, size)
    points = np.asarray(landmarks, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return as_shares(points, size)


def mirrored(points: torch.Tensor) -> torch.Tensor:
    """Landmarks (B,5,2) of the mirror images."""
    x, y = points[:, MIRRORED].unbind(2)
    return torch.stack([1 - x, y], 2)


def landmarks_file(images: Images) -> Path | None:
    """The file beside a set that has its landmarks, be it there or not; None if it can't have one.

    Sets that join or choose images of other sets have none.
    """
    file = getattr(images, "landmarks_file", None)
    return None if file is None else Path(file)


def landmarks_of(images: Images) -> Landmarks | None:
    """The landmarks of all images, NaN where an image has none; None if no image has any.

    Raises ValueError for a file or column that does not fit the images.
    """
    own = getattr(images, "landmarks", None)
    if own is not None and (found := own()) is not None:
        points: Landmarks = found
        return points
    file = landmarks_file(images)
    return read_landmarks(file, images) if file is not None and file.exists() else None


def needed_landmarks(images: Images) -> Landmarks:
    """The landmarks of all images; ValueError if an image has none."""
    found = landmarks_of(images)
    if found is None:
        where = landmarks_file(images) or images.describe(0)
        raise ValueError(f"{where}: no landmarks there, which this backbone needs; {ADVICE}")
    return check_all(found, images)


ADVICE = (
    f"{MAKE} finds and writes those of a set, and backbone.landmarks=template (of a trained model: "
    "--landmarks template) takes those of the template"
)


def check_all(points: Landmarks, images: Images) -> Landmarks:
    """The landmarks of all images; ValueError for an image whose row is NaN."""
    lacking = np.flatnonzero(~np.isfinite(points).all((1, 2)))
    if len(lacking):
        others = f", and so are {len(lacking) - 1:,} others" if len(lacking) > 1 else ""
        raise ValueError(
            f"{images.describe(int(lacking[0]))}: is without landmarks{others}; {ADVICE}"
        )
    return points


def read_landmarks(file: Path, images: Images) -> Landmarks:
    """The landmarks of all images in a file beside them, NaN for those that are not in it."""
    table = _read(str(file), os.stat(file).st_mtime_ns)
    if table.dtype != ROW or table.ndim != 1:
        raise ValueError(
            f"{file}: found {table.dtype} {table.shape}, expected rows of a mark and landmarks; "
            f"delete it, and {MAKE} writes it anew"
        )
    own = _marks(images)
    points = check_range(table["points"], str(file))
    if np.array_equal(table["mark"], own):
        return points
    marks, rows, counts = np.unique(table["mark"], return_index=True, return_counts=True)
    place = np.minimum(np.searchsorted(marks, own), len(marks) - 1)
    known = np.zeros(len(own), bool) if not len(marks) else marks[place] == own
    known[known] = counts[place[known]] == 1
    found = np.full((len(own), 5, 2), np.nan, np.float32)
    found[known] = points[rows[place[known]]]
    return found


def _marks(images: Images) -> NDArray[np.int64]:
    """int64 (N,): what tells the images of a set apart."""
    keys, sizes = keys_and_sizes(images)
    return keys.astype(np.int64) * MIX + sizes.astype(np.int64)


@functools.lru_cache(maxsize=4)  # a set is embedded in parts, and each part asks for it
def _read(file: str, changed: int) -> np.ndarray:
    return read_npy(file)


def check_range(points: Landmarks, where: str) -> Landmarks:
    """Landmarks that are shares; ValueError for numbers such as pixels."""
    wrong = np.flatnonzero((np.abs(points - 0.5) > FARTHEST).any((1, 2)))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{where}: row {row} has landmark {points[row].ravel()[:2].tolist()}, expected shares "
            "of the side, from 0 to 1"
        )
    return points


def digest(points: Landmarks) -> str:
    """Tells the landmarks of one set from others."""
    return hashlib.blake2b(points.tobytes(), digest_size=16).hexdigest()


def write_landmarks(file: Path, images: Images, points: Landmarks) -> None:
    """Write the file that `read_landmarks` reads."""
    table = np.empty(len(images), ROW)
    table["mark"], table["points"] = _marks(images), points
    with atomic_write(file) as out:
        np.save(out, table, allow_pickle=False)
