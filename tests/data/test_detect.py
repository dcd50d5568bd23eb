"""YuNet on a photograph in the public domain, compared with the landmarks of another detector."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.detect import Detector, load_detector
from data.types import Pixels
from tests.photographs import photograph

# The astronaut's landmarks by MTCNN of facenet-pytorch 2.6.0.
MTCNN = np.array([[205.0, 101.7], [246.8, 103.7], [224.7, 129.0], [201.7, 139.2], [245.3, 141.9]])
APART = 8.0  # pixels; the eyes are 42 apart


@pytest.fixture(scope="module")
def detect() -> Detector:
    return load_detector()


@pytest.fixture(scope="module")
def astronaut() -> Pixels:
    return photograph("astronaut")


def _turned(image: Pixels, degrees: float, scale: float) -> tuple[Pixels, NDArray[np.float64]]:
    """The image turned about the astronaut's nose, and where MTCNN's landmarks are in it."""
    nose = np.array([224.0, 128.0])
    turn = np.array(cv2.getRotationMatrix2D((0, 0), degrees, scale))[:, :2]
    matrix = np.column_stack([turn, scale * nose - turn @ nose])
    size = (round(512 * scale), round(512 * scale))
    turned = np.asarray(cv2.warpAffine(image, matrix, size), np.uint8)
    return turned, MTCNN @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize(
    ("degrees", "scale"), [(0, 1), (0, 0.3), (0, 6), (25, 1), (-25, 1), (-15, 2.5)]
)
def test_landmarks_of_a_photograph(
    detect: Detector, astronaut: Pixels, degrees: float, scale: float
) -> None:
    photo, expected = _turned(astronaut, degrees, scale)
    (face,) = detect(photo)
    away = np.linalg.norm(face.landmarks - expected, axis=1) / scale
    assert away.max() < APART
    assert (face.box[:2] < expected).all()
    assert (face.box[2:] > expected).all()
    assert 0.7 < face.score <= 1


def test_landmarks_of_the_mirror_image_are_the_mirrored_ones(
    detect: Detector, astronaut: Pixels
) -> None:
    (face,), (mirrored,) = detect(astronaut), detect(np.ascontiguousarray(astronaut[:, ::-1]))
    back = mirrored.landmarks[[1, 0, 2, 4, 3]] * [-1, 1] + [511, 0]
    assert np.linalg.norm(face.landmarks - back, axis=1).max() < APART / 2


def test_several_faces_come_largest_first_and_none_is_an_empty_list(
    detect: Detector, astronaut: Pixels
) -> None:
    small = np.zeros((512, 300, 3), np.uint8)
    small[100:356, 20:276] = astronaut[::2, ::2]
    faces = detect(np.hstack([small, astronaut]))
    assert len(faces) == 2
    assert faces[0].landmarks[0, 0] == pytest.approx(300 + 205, abs=APART)
    assert faces[1].landmarks[0, 0] == pytest.approx(20 + 205 / 2, abs=APART)
    assert detect(photograph("coffee")) == []
    assert detect(np.zeros((1, 1, 3), np.uint8)) == []
    assert detect(np.zeros((3, 2000, 3), np.uint8)) == []


def test_a_small_face_in_a_large_photo_is_found(detect: Detector, astronaut: Pixels) -> None:
    """The face has 9 pixels where the photo is shrunk to 640, so the second size finds it."""
    photo = np.full((3000, 4000, 3), 120, np.uint8)
    photo[2000:2256, 3000:3256] = astronaut[::2, ::2]
    (face,) = detect(photo)
    away = np.linalg.norm(face.landmarks - (MTCNN / 2 + [3000, 2000]), axis=1)
    assert away.max() < APART / 2
