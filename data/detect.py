"""Finds faces and their five landmarks in ordinary photos.

The detector is YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023).
OpenCV runs it, and its weights are in data/yunet/. docs/benchmarks/alignment.md has figures.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from data.align import MIRRORED, similarity, warp
from data.types import Pixels

Item = TypeVar("Item")
Result = TypeVar("Result")
WEIGHTS = Path(__file__).parent / "yunet" / "face_detection_yunet_2023mar.onnx"

# YuNet finds faces of 15 pixels and more. Photos are shrunk for it, so that a photo costs the same
# whatever the camera. The second size is for photos in which the first one shows no face.
LONGEST_SIDES = (640, 1600)
MOST_THREADS = 4  # each holds one whole photo, which may have 0.8 GB
LEAST_SCORE = 0.7
LEAST_OVERLAP = 0.3  # two boxes of which more than this is common show one face

# The landmarks of a turned face are found as if it stood more upright. So YuNet looks at each face
# twice more, each time turned upright by the landmarks so far, and at its mirror image.
LOOKS, LOOK_SIZE, FACE_SIZE = 2, 160, 78  # a template of 78 pixels in the middle of 160


@dataclass(frozen=True)
class Face:
    """A face in a photo, in pixels of the photo.

    box: x and y of the upper left and of the lower right corner, float64 (4,).
    landmarks: x and y of the eyes, the nose tip and the mouth corners, as in `TEMPLATE`, float64
        (5,2).
    score: the detector's certainty, between 0 and 1.
    """

    box: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    score: float


Detector = Callable[[Pixels], list[Face]]
"""The faces of a photo uint8 (H,W,3) RGB, the largest box first."""


def load_detector() -> Detector:
    """A detector on the CPU. It holds buffers, so each thread needs its own."""
    weights = np.fromfile(WEIGHTS, np.uint8)
    with _without_warnings():
        network = cv2.FaceDetectorYN.create(
            "onnx", weights, np.empty(0, np.uint8), (320, 320), LEAST_SCORE, LEAST_OVERLAP
        )

    def find(image: Pixels) -> NDArray[np.float64]:
        """Rows of box (x, y, width, height), five landmarks and score, (F,15)."""
        network.setInputSize((image.shape[1], image.shape[0]))
        rows = network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        return np.zeros((0, 15)) if rows is None else rows.astype(np.float64)

    def detect(image: Pixels) -> list[Face]:
        height, width = image.shape[:2]
        faces: list[Face] = []
        for side in LONGEST_SIDES:
            small = shrink(image, min(1.0, side / max(height, width)))
            to_photo = np.array([width / small.shape[1], height / small.shape[0]])
            for row in find(small):
                corner, extent = row[:2] * to_photo, row[2:4] * to_photo
                landmarks = row[4:14].reshape(5, 2) * to_photo
                box = np.concatenate([corner, corner + extent])
                faces.append(Face(box, _look_again(find, image, landmarks), float(row[14])))
            if faces or max(height, width) <= side:
                break
        return sorted(faces, key=lambda face: -_area(face.box))

    return detect


def in_threads(
    work: Callable[[Detector, Item], Result],
    items: Sequence[Item],
    load: Callable[[], Detector] = load_detector,
) -> Iterator[Result]:
    """`work` of each item in order, in some threads that have a detector each.

    load: makes a detector.
    """
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    idle: SimpleQueue[Detector] = SimpleQueue()
    for _ in range(threads):
        idle.put(load())

    def one(item: Item) -> Result:
        detect = idle.get()
        try:
            return work(detect, item)
        finally:
            idle.put(detect)

    with ThreadPoolExecutor(threads, "detect") as executor:
        yield from executor.map(one, items)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Inside, OpenCV 5 does not warn that it ignores the target, although it is the default one."""
    logging = getattr(cv2.utils, "logging", None)  # OpenCV 4 has another interface and no warning
    level = logging.setLogLevel(logging.LOG_LEVEL_ERROR) if logging else None
    try:
        yield
    finally:
        if logging:
            logging.setLogLevel(level)


def shrink(image: Pixels, factor: float) -> Pixels:
    """The image uint8 (H,W,3) with its sides times `factor`, at most 1; pixels are averaged."""
    if factor == 1:
        return image
    wide, tall = (max(1, round(side * factor)) for side in image.shape[1::-1])
    out = np.empty((tall, wide, 3), np.uint8)
    cv2.resize(image, (wide, tall), dst=out, interpolation=cv2.INTER_AREA)
    return out


def _area(box: NDArray[np.float64]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _look_again(
    find: Callable[[Pixels], NDArray[np.float64]], image: Pixels, landmarks: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The landmarks (5,2) of one face, found again in upright crops of it."""
    for _ in range(LOOKS):
        matrix = similarity(landmarks, FACE_SIZE)
        matrix[:, 2] += (LOOK_SIZE - FACE_SIZE) / 2
        crop = warp(image, matrix, LOOK_SIZE)
        mirrored = np.ascontiguousarray(crop[:, ::-1])
        seen, other = _central(find(crop)), _central(find(mirrored))
        if seen is None or other is None:
            return landmarks
        other[:, 0] = LOOK_SIZE - 1 - other[:, 0]
        to_photo = cv2.invertAffineTransform(matrix)
        landmarks = (seen + other[MIRRORED]) / 2 @ to_photo[:, :2].T + to_photo[:, 2]
    return landmarks


def _central(rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The landmarks (5,2) of the face that is nearest to the middle of a crop."""
    if len(rows) == 0:
        return None
    landmarks = rows[:, 4:14].reshape(-1, 5, 2)
    away = np.linalg.norm(landmarks.mean(1) - LOOK_SIZE / 2, axis=1)
    nearest: NDArray[np.float64] = landmarks[away.argmin()]
    return nearest
