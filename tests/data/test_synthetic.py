"""Synthetic identities are deterministic and distinct, and raw pixels do not tell them apart."""

from __future__ import annotations

import numpy as np
import pytest

from data.decode import decode
from data.faces import open_faces
from data.formats.synthetic import draw


def test_the_same_path_gives_the_same_bytes_and_another_seed_others() -> None:
    a, b, c = (
        open_faces(f"synthetic:identities=3,images=2,seed={seed},size=48") for seed in (1, 1, 2)
    )
    assert [a.read(i) for i in range(6)] == [b.read(i) for i in range(6)]
    assert all(a.read(i) != c.read(i) for i in range(6))
    assert a.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_first_shifts_the_identities() -> None:
    a = open_faces("synthetic:identities=4,images=2,size=48")
    b = open_faces("synthetic:identities=2,first=2,images=2,size=48")
    assert [a.read(i) for i in (4, 5, 6, 7)] == [b.read(i) for i in range(4)]


def test_first_image_gives_other_pictures_of_the_same_people() -> None:
    a = open_faces("synthetic:identities=2,images=5,size=48")
    b = open_faces("synthetic:identities=2,images=3,first_image=2,size=48")
    assert [a.read(i) for i in (2, 3, 4, 7, 8, 9)] == [b.read(i) for i in range(6)]
    assert b.describe(4) == "synthetic identity 1 image 3"


def test_drawing_is_rgb_of_the_asked_size() -> None:
    image = draw(seed=0, identity=1, image=2, size=57)
    assert image.shape == (57, 57, 3)
    assert image.dtype == np.uint8


def test_pixels_alone_verify_below_80_percent() -> None:
    """Accuracy of the pixels' cosine at its best threshold, on balanced pairs of 100 people."""
    people, each = 100, 8
    faces = open_faces(f"synthetic:identities={people},images={each},first=50000,size=32")
    pixels = (
        np.stack([decode(faces.read(i), 32) for i in range(len(faces))])
        .reshape(len(faces), -1)
        .astype(np.float64)
    )
    pixels -= pixels.mean(0)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    cosines = pixels @ pixels.T
    same = faces.labels[:, None] == faces.labels[None, :]
    upper = np.triu(np.ones_like(same), 1).astype(bool)
    genuine, impostor = np.sort(cosines[same & upper]), np.sort(cosines[~same & upper])
    thresholds = np.linspace(-1, 1, 401)
    accepted = 1 - np.searchsorted(genuine, thresholds) / len(genuine)
    rejected = np.searchsorted(impostor, thresholds) / len(impostor)
    assert 0.52 < ((accepted + rejected) / 2).max() < 0.80


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("synthetic:identites=3", "unknown option 'identites'"),
        ("synthetic:images=x", "expected a whole number"),
        ("synthetic:identities=0", "at least 1"),
        ("synthetic:identities=1", "two identities or more"),
    ],
)
def test_wrong_options_are_named(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_faces(path)
