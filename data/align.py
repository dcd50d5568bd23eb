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


def align(image: Pixels, landmarks: ArrayLike, size: int = 112) -> np.ndarray:
    """uint8 (size,size,3) crop of an image uint8 (H,W,3).

    Sampling is bilinear, and pixels outside the photo are black, as in the published crops.
    """
    matrix = similarity(landmarks, size)
    return cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0)
    )
