"""tools.align: the geometry against a numerical fit, the folder work with a detector that is told where faces are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tools.align import REPORT, TEMPLATE, align, align_folder, similarity


@pytest.mark.parametrize("seed", range(5))
def test_similarity_is_the_least_squares_fit(seed: int):
    """Against lstsq on the four numbers of a similarity written as a linear system."""
    rng = np.random.default_rng(seed)
    points, target = rng.normal(size=(5, 2)) * 50, rng.normal(size=(5, 2)) * 30
    x, y = points.T
    ones, zeros = np.ones(5), np.zeros(5)
    system = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, dx, dy = np.linalg.lstsq(system, np.concatenate(target.T), rcond=None)[0]
    assert np.allclose(similarity(points, target), [[a, -b, dx], [b, a, dy]])


def test_landmarks_land_on_the_template():
    template = np.array(TEMPLATE)
    turn = np.deg2rad(20)
    matrix = 1.8 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = template @ matrix.T + [60, 10]
    photo = np.zeros((320, 320, 3), np.uint8)
    for number, (x, y) in enumerate(landmarks):
        cv2.circle(photo, (round(x), round(y)), 5, (50 * number + 50, 0, 0), -1)
    crop = align(photo, landmarks)
    assert crop.shape == (112, 112, 3)
    for number, (x, y) in enumerate(template):
        assert abs(int(crop[round(y), round(x), 0]) - (50 * number + 50)) <= 2


def test_degenerate_landmarks():
    with pytest.raises(ValueError, match="one place"):
        align(np.zeros((9, 9, 3), np.uint8), np.ones((5, 2)))


def test_folder_reports_what_it_left_out(tmp_path: Path):
    """The brightness of a photo tells the detector how many faces it has."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name, faces in (("ann/a.jpg", 1), ("ann/b.png", 0), ("bob/c.jpg", 2)):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(photos / name), np.full((150, 150, 3), faces * 100, np.uint8))
    (photos / "bob" / "broken.jpg").write_bytes(b"\xff\xd8 no")
    calls = []

    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        faces = round(float(image.mean()) / 100)
        return np.array([[0, 0, 50 + i, 50] for i in range(faces)]).reshape(-1, 4), np.array([TEMPLATE] * faces)

    counts = align_folder(photos, out, detect)
    assert counts == {"aligned": 1, "no_face": 1, "several": 1, "unreadable": 1}
    rows = [line.split("\t")[:2] for line in (out / REPORT).read_text().splitlines()[1:]]
    assert rows == [["ann/b.png", "no_face"], ["bob/broken.jpg", "unreadable"], ["bob/c.jpg", "several"]]
    assert cv2.imread(str(out / "ann" / "a.jpg")).shape == (112, 112, 3)
    assert len(calls) == 3
    again = align_folder(photos, out, detect, largest=True)
    assert again == {"kept": 1, "aligned": 1, "no_face": 1, "unreadable": 1}
    with pytest.raises(ValueError, match="holds no photo"):
        align_folder(tmp_path / "none", out, detect)
