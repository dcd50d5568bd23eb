"""The transform equals that of a general least-squares solver, and crops use it."""

import cv2
import numpy as np
import pytest

from data.align import TEMPLATE, align, similarity


@pytest.mark.parametrize("size", [112, 64])
def test_similarity_is_the_least_squares_one(size: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = (
            TEMPLATE * rng.uniform(0.3, 4) + rng.normal(0, 8, (5, 2)) + rng.uniform(-50, 200, 2)
        )
        rows = [[x, -y, 1, 0] for x, y in points] + [[y, x, 0, 1] for x, y in points]
        target = TEMPLATE * size / 112
        a, b, c, d = np.linalg.lstsq(
            np.array(rows), np.concatenate([target[:, 0], target[:, 1]]), rcond=None
        )[0]
        np.testing.assert_allclose(similarity(points, size), [[a, -b, c], [b, a, d]], atol=1e-8)


def test_crop_brings_landmarks_to_the_template() -> None:
    angle, scale = 0.5, 2.3
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ turn.T + [180, 40]
    photo = np.zeros((500, 500, 3), np.uint8)
    for k, (x, y) in enumerate(points):
        cv2.circle(photo, (round(x), round(y)), 6, (50 + 40 * k,) * 3, -1)
    crop = align(photo, points)
    assert crop.shape == (112, 112, 3)
    for k, (x, y) in enumerate(TEMPLATE):
        assert crop[round(y), round(x)].tolist() == [50 + 40 * k] * 3


def test_wrong_landmarks_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(68, 2\)"):
        similarity(np.zeros((68, 2)))
    with pytest.raises(ValueError, match="one point"):
        similarity(np.ones((5, 2)))
