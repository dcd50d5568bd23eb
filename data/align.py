"""Aligns a face to the ArcFace template by its five landmarks."""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.types import Pixels

TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""x and y of the eyes, the nose tip and the mouth corners in a 112×112 crop.

The eye and the mouth corner on the left side of the image come first.
"""
TEMPLATE.setflags(write=False)
MIRRORED = [1, 0, 2, 4, 3]
"""The landmarks of a mirror image in the order of the template."""


def similarity(landmarks: ArrayLike, size: int = 112) -> NDArray[np.float64]:
    """Matrix (2,3) of the similarity transform from landmarks (5,2) to the template at `size`.

    It is the rotation, scale and shift with the least sum of squared distances (Umeyama 1991). With
    points as complex numbers z and the template as w, the transform is w = a·z + b, and

        a = Σ conj(z - mean z) (w - mean w) / Σ |z - mean z|²,    b = mean w - a · mean z.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"landmarks of shape {points.shape}; expected five finite points, (5, 2)")
    z = points @ [1, 1j]
    w = TEMPLATE @ [1, 1j] * size / 112
    centered = z - z.mean()
    spread = np.vdot(centered, centered).real
    if spread == 0:
        raise ValueError("all five landmarks are one point")

    a = np.vdot(centered, w - w.mean()) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(image: Pixels, landmarks: ArrayLike, size: int = 112) -> Pixels:
    """uint8 (size,size,3) crop of an image uint8 (H,W,3)."""
    return warp(image, similarity(landmarks, size), size)


def warp(image: Pixels, matrix: NDArray[np.float64], size: int) -> Pixels:
    """uint8 (size,size,3): what the similarity (2,3) makes of an image uint8 (H,W,3).

    Sampling is bilinear, and pixels outside the photo are black, as in the published crops. If the
    image shrinks by a factor of two or more, squares of its pixels are averaged before, so that
    fine patterns do not alias.
    """
    shrink = int(1 / np.linalg.norm(matrix[0, :2]))
    if shrink >= 2:
        image, matrix = _average(image, matrix, size, shrink)
    out = np.empty((size, size, 3), np.uint8)
    cv2.warpAffine(
        np.ascontiguousarray(image),
        matrix,
        (size, size),
        dst=out,
        flags=cv2.INTER_LINEAR,
        borderValue=(0, 0, 0),
    )
    return out


def _average(
    image: Pixels, matrix: NDArray[np.float64], size: int, shrink: int
) -> tuple[Pixels, NDArray[np.float64]]:
    """The part of an image that `warp` needs, `shrink` times smaller, and the matrix for it."""
    back = cv2.invertAffineTransform(matrix)
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ back[:, :2].T + back[:, 2]
    # Counted in whole squares from the photo's corner: those that the crop touches, and one more.
    most = np.maximum(np.array(image.shape[1::-1]) // shrink, 1)
    low = np.clip(np.floor(corners.min(0) / shrink) - 1, 0, most - 1).astype(int)
    wide, tall = np.clip(np.ceil(corners.max(0) / shrink) + 1, low + 1, most).astype(int) - low
    low *= shrink
    part = image[low[1] : low[1] + tall * shrink, low[0] : low[0] + wide * shrink]
    small = np.empty((tall, wide, 3), np.uint8)
    cv2.resize(np.ascontiguousarray(part), (wide, tall), dst=small, interpolation=cv2.INTER_AREA)

    # The middle of pixel i of `small` is at low + (i + ½) · shrink - ½ in the photo.
    linear = matrix[:, :2] * shrink
    shift = matrix[:, :2] @ (low + (shrink - 1) / 2) + matrix[:, 2]
    return small, np.column_stack([linear, shift])
