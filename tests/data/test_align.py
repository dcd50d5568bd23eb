"""The transform equals that of a general least-squares solver, and crops use it."""

import cv2
import numpy as np
import pytest

from data.align import TEMPLATE, align, similarity, warp


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


def test_a_crop_of_a_large_photo_averages_its_pixels() -> None:
    """At a quarter of the size, each pixel is the mean of a square of 4×4."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (448, 512, 3), dtype=np.uint8)
    # Pixel i of the crop is in the middle of the photo's pixels 32 + 4i … 32 + 4i + 3.
    matrix = np.array([[0.25, 0, -(32 + 1.5) / 4], [0, 0.25, -1.5 / 4]])
    means = photo[:, 32:480].reshape(112, 4, 112, 4, 3).astype(float).mean((1, 3))
    assert np.abs(warp(photo, matrix, 112) - means).max() <= 1


@pytest.mark.parametrize(("scale", "degrees"), [(0.9, 10), (0.45, 30), (0.21, -40), (0.1, 200)])
def test_a_crop_lies_where_the_matrix_says(scale: float, degrees: float) -> None:
    """Brightness that grows evenly across the photo tells where each pixel of a crop is from."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([turn, [16, 16] - turn @ [600, 500]])
    y, x = np.mgrid[:1000, :1200]
    photo = np.stack([x / 5, y / 5, (x + y) / 10], 2).round().astype(np.uint8)
    crop = warp(photo, matrix, 32).astype(float)
    row, column = np.mgrid[:32, :32]
    back = (np.stack([column, row], 2) - matrix[:, 2]) @ np.linalg.inv(turn).T
    expected = np.concatenate([back / 5, back.sum(2, keepdims=True) / 10], 2)
    assert np.abs(crop - expected).max() < 1.5


def test_pixels_outside_the_photo_are_black() -> None:
    photo = np.full((400, 400, 3), 200, np.uint8)
    for shift in (500, -500):
        matrix = np.array([[0.25, 0, shift], [0, 0.25, 0]])
        assert not warp(photo, matrix, 100).any()
    half = warp(photo, np.array([[0.25, 0, 50.0], [0, 0.25, 0]]), 100)
    assert not half[:, :49].any()
    assert (half[1:99, 52:] == 200).all()


def test_wrong_landmarks_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(68, 2\)"):
        similarity(np.zeros((68, 2)))
    with pytest.raises(ValueError, match="one point"):
        similarity(np.ones((5, 2)))
