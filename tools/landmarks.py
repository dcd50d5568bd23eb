"""Finds the landmarks in the images of a face set, and writes them beside it.

    python -m tools.landmarks FACES

A backbone that needs landmarks (`backbone: {name: kprpe, landmarks: given}`) takes them from there,
in training, evaluation and extraction.
`tools.align` writes those of its crops itself; this command adds what it finds missing.
"""

from typing import Any, Literal

import numpy as np

from data.detect import Detector, in_threads
from data.landmarks import (
    TEMPLATE_SHARES,
    Landmarks,
    as_shares,
    landmarks_file,
    landmarks_of,
    write_landmarks,
)
from data.read_image import BadImage, read_pixels
from data.types import Pixels
from eval.extract import open_source
from tools._cli import Failed, command
from tools._progress import progress_bar

BORDER = 4  # a border of a fourth of a side around each crop, which a face may fill


def find_landmarks(detect: Detector, image: Pixels) -> Landmarks | None:
    """The landmarks (5,2) of the largest face in a crop uint8 (H,W,3), as shares of its sides."""
    height, width = image.shape[:2]
    border = max(height, width) // BORDER
    framed = np.zeros((height + 2 * border, width + 2 * border, 3), np.uint8)
    framed[border : border + height, border : border + width] = image
    faces = detect(framed)
    return as_shares(faces[0].landmarks - border, (width, height)) if faces else None


def run(faces: str, *, missing: Literal["fail", "template"] = "fail") -> dict[str, Any]:
    """Find and write landmarks.

    faces: any set of faces, a folder of image files at any depth, or a verification .bin.
    missing: what to do with images in which no face is found. fail: write the others, name one, and
        end with exit code 1. template: give them the points of the ArcFace template, which are
        right for exactly aligned crops.
    """
    images, _ = open_source(faces)
    file = landmarks_file(images)
    if file is None:
        raise ValueError(f"{faces}: is no set of its own; give the sets that it is made of")
    known = landmarks_of(images)
    points = np.full((len(images), 5, 2), np.nan, np.float32) if known is None else known.copy()
    sought = np.flatnonzero(~np.isfinite(points).all((1, 2))).tolist()

    def one(detect: Detector, index: int) -> Landmarks | None:
        try:
            return find_landmarks(detect, read_pixels(images, index))
        except BadImage:
            return None

    with progress_bar(len(sought), "landmarks") as advance:
        for index, found in zip(sought, in_threads(one, sought), strict=True):
            if found is not None:
                points[index] = found
            advance(1)
    lacking = np.flatnonzero(~np.isfinite(points).all((1, 2)))
    if missing == "template":
        points[lacking] = TEMPLATE_SHARES
    write_landmarks(file, images, points)
    record = {"images": len(images), "found": len(sought) - len(lacking), "missing": len(lacking)}
    print(
        f"{file}: {record['found']:,} found, {len(images) - len(sought):,} known before, "
        f"{len(lacking):,} {'from the template' if missing == 'template' else 'missing'}"
    )
    if len(lacking) and missing == "fail":
        raise Failed(
            f"{images.describe(int(lacking[0]))}: shows no face, and {len(lacking) - 1:,} others "
            "don't; leave them out with data.subset, or give --missing template",
            record,
        )
    return record


main = command(run)
