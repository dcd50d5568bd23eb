"""Landmarks: stored beside sets of every format, carried by batches, and moved with the pixels."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data.align import MIRRORED, TEMPLATE, align
from data.augment import Augment, augment, augment_landmarks
from data.faces import open_faces
from data.landmarks import (
    TEMPLATE_SHARES,
    Landmarks,
    as_shares,
    in_crop,
    landmarks_file,
    landmarks_of,
    mirrored,
    needed_landmarks,
    write_landmarks,
)
from data.loader import Loader
from data.pairs.lists import from_bin
from data.pairs.verification_bin import write_bin
from data.types import FaceSet
from tools.convert import convert

PEOPLE = {"ann": 3, "ben": 2, "cara": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (name, count) in enumerate(PEOPLE.items()):
        (tmp_path / "set" / name).mkdir(parents=True)
        for image in range(count):
            pixels = np.full((16, 16, 3), 60 * number + 9 * image, np.uint8)
            cv2.imwrite(str(tmp_path / "set" / name / f"{image}.png"), pixels)
    return tmp_path / "set"


def some(count: int) -> Landmarks:
    draw = np.random.default_rng(0)
    return (TEMPLATE_SHARES + 0.05 * draw.standard_normal((count, 5, 2))).astype(np.float32)


def stored(faces: FaceSet) -> Landmarks:
    """Write landmarks beside the set and return them."""
    file, points = landmarks_file(faces), some(len(faces))
    assert file is not None
    write_landmarks(file, faces, points)
    return points


def test_shares() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[2, 5] = 255
    x, y = as_shares([5, 2], 8)
    larger = cv2.resize(image, (80, 80), interpolation=cv2.INTER_NEAREST)
    rows, columns = np.nonzero(larger[..., 0])
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((80 * x, 80 * y))


@pytest.mark.parametrize("size", [112, 64])
def test_landmarks_in_an_aligned_crop(size: int) -> None:
    photo = np.zeros((200, 200, 3), np.uint8)
    angle = 0.3
    turn = 1.1 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ turn + [40, 30] + np.random.default_rng(0).uniform(-4, 4, (5, 2))
    for x, y in points:
        one = photo.copy()
        cv2.circle(one, (round(x * 16), round(y * 16)), 5 * 16, (255, 255, 255), -1, shift=4)
        crop = align(one, points, size).astype(float).sum(2)
        ys, xs = np.mgrid[:size, :size] + 0.5
        found = np.array([(crop * xs).sum(), (crop * ys).sum()]) / crop.sum() / size
        row = int(np.abs(points - [x, y]).sum(1).argmin())
        np.testing.assert_allclose(in_crop(points, size)[row], found, atol=0.004)


def test_augmentation_moves_landmarks_with_the_pixels() -> None:
    """One bright spot per image, at one of the landmarks."""
    size, count = 48, 40
    points = torch.from_numpy(0.5 + 0.5 * (some(count) - 0.5))
    places = (torch.arange(size) + 0.5) / size
    far_x, far_y = (
        (points[range(count), torch.arange(count) % 5, axis, None] - places) for axis in (0, 1)
    )
    spots = torch.exp(-(far_y[:, :, None] ** 2 + far_x[:, None] ** 2) / (2 * 0.04**2))
    images = (255 * spots[:, None].expand(-1, 3, -1, -1)).byte()
    options = Augment(flip=0.5, shift=4, zoom=0.2, crop=0.0, blur=0.2)
    light = (augment(images, options, seed=3)[:, 0] + 1).double()
    found_x = (light.sum(1) * places).sum(1) / light.sum((1, 2))
    found_y = (light.sum(2) * places).sum(1) / light.sum((1, 2))
    moved = augment_landmarks(points, options, 3, size)
    flipped = 0
    for row in range(count):
        # In a mirror image the left eye is the right one.
        own, other = row % 5, MIRRORED[row % 5]
        place = torch.stack([found_x[row], found_y[row]])
        distances = [float((moved[row, one] - place).abs().max()) for one in (own, other)]
        assert min(distances) < 0.012, row
        flipped += own != other and distances[1] < distances[0]
        assert moved[row, 0, 0] < moved[row, 1, 0]
    assert 5 < flipped < 28
    assert torch.equal(augment_landmarks(points, Augment(flip=0), 3, size), points)
    assert torch.equal(augment_landmarks(points, Augment(flip=1), 3, size), mirrored(points))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "rec"])
def test_every_format_has_them_beside_it(kind: str, folder: Path, tmp_path: Path) -> None:
    path = folder
    if kind != "folder":
        path = tmp_path / f"faces.{kind}"
        convert(open_faces(folder), str(path), kind=kind, shard=0)
    faces = open_faces(path)
    assert landmarks_of(faces) is None
    points = stored(faces)
    np.testing.assert_array_equal(needed_landmarks(open_faces(path)), points)

    rows = tmp_path / "rows.npy"
    np.save(rows, np.array([6, 1, 2]))
    chosen = open_faces(f"subset:{rows};{path}", check=False)
    np.testing.assert_array_equal(needed_landmarks(chosen), points[[1, 2, 6]])
    joined = open_faces(f"concat:{path};{path}")
    np.testing.assert_array_equal(needed_landmarks(joined), np.concatenate([points, points]))
    half = open_faces(f"concat:{path};synthetic:identities=2,images=2,size=16")
    with pytest.raises(ValueError, match="is without landmarks, and so are 3 others; python -m"):
        needed_landmarks(half)


@pytest.mark.parametrize("kind", ["zip", "rec", "folder"])
def test_a_conversion_carries_them(kind: str, folder: Path, tmp_path: Path) -> None:
    points = stored(open_faces(folder))
    order = np.array([[5, 0], [0, 2], [3, 1], [1, 2]])
    np.save(tmp_path / "rows.npy", order)
    chosen = open_faces(f"subset:{tmp_path / 'rows.npy'};{folder}")
    path = str(tmp_path / f"faces.{kind}")
    convert(chosen, path, kind=kind, shard=0)
    faces = open_faces(path)
    found = {faces.read(row): points for row, points in enumerate(needed_landmarks(faces))}
    assert len(found) == 4
    for row in range(4):
        np.testing.assert_array_equal(found[chosen.read(row)], needed_landmarks(chosen)[row])
    assert {points[row].tobytes() for row in (0, 1, 3, 5)} == {
        one.tobytes() for one in found.values()
    }


def test_a_bin_of_pairs_has_them_beside_it(folder: Path, tmp_path: Path) -> None:
    faces = open_faces(folder)
    write_bin(tmp_path / "some.bin", [faces.read(row) for row in (0, 1, 3, 5)], np.array([1, 0]))
    images = from_bin(tmp_path / "some.bin").images
    file, points = landmarks_file(images), some(4)
    assert file == tmp_path / "some.bin.landmarks.npy"
    write_landmarks(file, images, points)
    np.testing.assert_array_equal(needed_landmarks(from_bin(tmp_path / "some.bin").images), points)


def test_rows_are_found_again_after_a_change(folder: Path) -> None:
    points = stored(open_faces(folder))
    (folder / "ann" / "1.png").unlink()
    np.testing.assert_array_equal(
        needed_landmarks(open_faces(folder)), np.delete(points, 1, axis=0)
    )
    shutil.copy(folder / "ann" / "0.png", folder / "ben" / "9.png")
    with pytest.raises(ValueError, match=r"ben/9\.png: is without landmarks; python -m tools\.lan"):
        needed_landmarks(open_faces(folder))
    (folder / "ben" / "9.png").unlink()
    with (folder / "cara" / "0.png").open("ab") as file:
        file.write(b"longer")
    with pytest.raises(ValueError, match=r"cara/0\.png: is without landmarks"):
        needed_landmarks(open_faces(folder))


def test_files_that_hold_no_landmarks_are_refused(folder: Path) -> None:
    faces = open_faces(folder)
    with pytest.raises(ValueError, match=r"landmarks\.npy: no landmarks there, which this back"):
        needed_landmarks(faces)
    np.save(folder / "landmarks.npy", np.zeros((7, 5, 2), np.float32))
    with pytest.raises(ValueError, match=r"landmarks\.npy: found float32 \(7, 5, 2\), expected"):
        needed_landmarks(faces)
    write_landmarks(folder / "landmarks.npy", faces, 112 * some(7))
    with pytest.raises(ValueError, match=r"row 0 has landmark .*, expected shares of the side"):
        needed_landmarks(faces)


def test_a_column_of_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    encoded = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    points = some(6)
    columns: dict[str, Any] = {"image": [encoded] * 6, "label": [0, 0, 1, 1, 2, 2]}
    columns["landmarks"] = [*points[:5].reshape(5, 10).tolist(), None]
    path = tmp_path / "faces.parquet"
    kind = {"type": arrow.list_(arrow.float32())}
    table = {**columns, "landmarks": arrow.array(columns["landmarks"], **kind)}
    parquet.write_table(arrow.table(table), path, row_group_size=4)
    found = landmarks_of(open_faces(path))
    assert found is not None
    np.testing.assert_array_equal(found[:5], points[:5])
    assert np.isnan(found[5]).all()

    short = {**columns, "landmarks": arrow.array([[0.5] * 9] * 6)}
    parquet.write_table(arrow.table(short), path)
    with pytest.raises(ValueError, match="column landmarks: found 54 numbers in 6 rows, expected"):
        landmarks_of(open_faces(path))
    long = {**columns, "landmarks": arrow.array([[0.5] * 11] * 6)}
    parquet.write_table(arrow.table(long), path)
    with pytest.raises(ValueError, match="column landmarks: claims 66 numbers in 6 rows, expected"):
        landmarks_of(open_faces(path))
    parquet.write_table(arrow.table({**columns, "landmarks": ["a"] * 6}), path)
    with pytest.raises(ValueError, match=r"column landmarks: found string, expected lists of ten"):
        landmarks_of(open_faces(path))
    del columns["landmarks"]
    parquet.write_table(arrow.table(columns), path)
    assert landmarks_of(open_faces(path)) is None
    np.testing.assert_array_equal(stored(open_faces(path)), needed_landmarks(open_faces(path)))


def test_batches_carry_those_of_their_images(folder: Path) -> None:
    points = stored(open_faces(folder))
    (folder / "ben" / "0.png").write_bytes((folder / "ben" / "0.png").read_bytes()[:-40])
    faces = open_faces(folder)
    loader = Loader(faces, batch_size=7, size=8, seed=0, threads=0)
    assert next(iter(loader)).landmarks is None
    loader.landmarks = points
    for batch in loader:  # with a stand-in for the broken image
        assert batch.landmarks is not None
        assert batch.indices is not None
        assert 3 not in batch.indices
        np.testing.assert_array_equal(batch.landmarks, points[batch.indices])
