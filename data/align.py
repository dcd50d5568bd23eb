"""Five landmarks to the ArcFace template: the least-squares similarity transform and the crop it
makes."""

from __future__ import annotations

import cv2
import numpy as np

TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""x, y in a 112×112 crop of the eyes, nose tip and mouth corners, the person's right side (left in
the image) first."""
TEMPLATE.setflags(write=False)


def similarity(landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """Matrix (2,3) of the rotation, scale and shift that bring landmarks (5,2) nearest to the
    template at `size`.

    In the complex plane it is w = a·z + b, and least squares for a is one division (Umeyama 1991 in
    two dimensions).
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"landmarks of shape {points.shape}; expected five finite points, (5, 2)")
    z, w = points @ [1, 1j], TEMPLATE @ [1, 1j] * size / 112
    centerd = z - z.mean()
    spread = np.vdot(centerd, centerd).real
    if spread == 0:
        raise ValueError("all five landmarks are one point")
    a = np.vdot(centerd, w - w.mean()) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(image: np.ndarray, landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """uint8 (size,size,3) crop of an image uint8 (H,W,3), bilinear, black outside the photo, as
    published."""
    matrix = similarity(landmarks, size)
    return cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0)
    )
