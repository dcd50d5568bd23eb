"""An image that is not there is a bad image: named, counted, replaced, and retried if it helps."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.f2c_loader import dual_loader
from data.faces import open_faces
from data.formats.synthetic import open_set
from data.images import FileImages
from data.loader import Loader, UnreadableImages
from data.read_image import BadImage, read_into
from data.types import FaceSet
from data.writers.folder import write_folder
from data.writers.records import write_records
from data.writers.shards import write_shards
from eval.embed import embed_faces
from scripts._lmdb import write_lmdb
from tools.verify import verify

FACES = "synthetic:identities=4,images=3,size=24"


def folder(path: Path) -> FaceSet:
    write_folder(open_set(FACES), str(path), progress=lambda done: None)
    return open_faces(path)


def load(faces: FaceSet, **options: Any) -> Loader:
    return Loader(faces, batch_size=len(faces), size=24, seed=0, threads=2, **options)


def remove(path: Path) -> None:
    path.unlink()


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.jpg")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BREAK: dict[str, tuple[Callable[[Path], None], str]] = {
    "deleted meanwhile": (remove, "No such file or directory"),
    "a link without a file": (dangle, "No such file or directory"),
    "a folder": (make_folder, "is a folder; expected a file"),
    "empty": (empty, "zero-length image"),
}


@pytest.mark.parametrize("how", BREAK)
def test_another_image_stands_in_for_one_that_is_not_there(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = folder(tmp_path)
    change, reason = BREAK[how]
    change(Path(faces.describe(5)))
    loader = load(faces)
    (batch,) = list(loader)
    assert loader.skipped == 1
    assert f"skipped {faces.describe(5)}: {reason}" in caplog.text
    # The same person stands in: three images of each, as before.
    assert np.bincount(batch.labels).tolist() == [3, 3, 3, 3]
    with pytest.raises(ValueError, match=reason) as told:
        embed_faces(lambda images: images.float().mean((2, 3)), faces, 24)
    assert str(told.value).startswith(faces.describe(5))


class Failing:
    """`os.pread` that fails the first `times` times for one file."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times, self.pread = number, times, os.pread

    def __call__(self, fd: int, length: int, offset: int) -> bytes:
        if self.times:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.pread(fd, length, offset)


def sets(path: Path, source: FaceSet | None = None) -> dict[str, FaceSet]:
    """One set in each format that has a writer."""
    source, done = source or open_set(FACES), lambda count: None
    write_folder(source, str(path / "folder"), progress=done)
    write_shards(source, str(path / "a.zip"), kind="zip", shard=0, progress=done)
    write_shards(source, str(path / "a.tar"), kind="tar", shard=0, progress=done)
    (path / "rec").mkdir()
    write_records(source, str(path / "rec/a.rec"), size=(24, 24), progress=done)
    write_lmdb(source, path / "lmdb")
    names = ("folder", "a.zip", "a.tar", "rec", "lmdb")
    return {name: open_faces(path / name) for name in names}


class OneHalf:
    """A set whose image 5 is a JPEG that is cut at half and has an end mark."""

    def __init__(self) -> None:
        self.whole = open_set(FACES.replace("24", "64"))
        self.labels, self.num_classes = self.whole.labels, self.whole.num_classes

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, index: int) -> bytes:
        encoded = self.whole.read(index)
        return encoded[: len(encoded) // 2] + b"\xff\xd9" if index == 5 else encoded

    def describe(self, index: int) -> str:
        return self.whole.describe(index)


def test_half_a_jpeg_is_reported_skipped_and_refused_in_every_format(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, faces in sets(tmp_path, OneHalf()).items():
        caplog.clear()
        place = faces.describe(5)
        found = [one for one in verify(str(tmp_path / name)) if one.kind == "undecodable"]
        assert [one.where for one in found] == [place], name
        loader = Loader(faces, batch_size=12, size=64, seed=0, threads=1)
        (batch,) = list(loader)
        assert loader.skipped == 1
        assert f"skipped {place}: JPEG of" in caplog.text
        assert np.bincount(batch.labels).tolist() == [3, 3, 3, 3]
        with pytest.raises(BadImage, match="is broken"):
            embed_faces(lambda images: images.float().mean((2, 3)), faces, 64)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_errors_of_a_drive_are_retried_once_where_that_can_help(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = np.empty((24, 24, 3), np.uint8)
    for name, faces in sets(tmp_path).items():
        expected = faces.read(0)
        for times in (1, 2):
            monkeypatch.setattr(os, "pread", Failing(number, times))
            if times == 1 and number != errno.EACCES:
                assert faces.read(0) == expected, name
            else:
                with pytest.raises(BadImage, match=os.strerror(number)):
                    read_into(faces, 0, out)
            monkeypatch.undo()


def test_a_machine_that_lacks_something_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = folder(tmp_path)
    monkeypatch.setattr(os, "pread", Failing(errno.EMFILE, 10**6))
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        list(load(faces))


def test_a_stale_file_that_another_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(open_set(FACES), str(tmp_path / "a.zip"), kind="zip", shard=0, progress=print)
    faces = open_faces(tmp_path / "a.zip")
    faces.read(0)
    other = tmp_path / "other"
    other.write_bytes((tmp_path / "a.zip").read_bytes() + b"more")
    os.replace(other, tmp_path / "a.zip")
    monkeypatch.setattr(os, "pread", Failing(errno.ESTALE, 1))
    with pytest.raises(ValueError, match="another file took its place"):
        faces.read(0)


class Numbers:
    """Image i is a 4×4 PPM of the color (i, label, 0); the images `broken` do not decode."""

    def __init__(self, labels: list[int], broken: set[int]) -> None:
        self.labels, self.num_classes, self.broken = np.array(labels), max(labels) + 1, broken

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        if index in self.broken:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", f"{index}.jpg")
        return b"P6 4 4 255\n" + bytes([index, int(self.labels[index]), 0]) * 16

    def describe(self, index: int) -> str:
        return f"{index}.jpg"


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 35), max_size=24), st.sampled_from([2, 4, 6]), st.integers(0, 99))
def test_stand_ins_keep_the_pairs_of_f2c(broken: set[int], identities: int, seed: int) -> None:
    labels = [index // 4 for index in range(36)]
    faces = Numbers(labels, broken)
    loader = dual_loader(faces, identities=identities, seed=seed, size=4, threads=0)
    half = 3 * identities // 2
    with suppress(UnreadableImages):
        for batch in loader:
            shown = batch.images[:, 1, 0, 0].long()
            np.testing.assert_array_equal(batch.labels, shown)  # each image has its own label
            x, y = batch.labels[:identities], batch.labels[half : half + identities]
            np.testing.assert_array_equal(x, y)
            assert not broken & set(batch.images[:, 0, 0, 0].tolist())


def test_images_of_other_sizes_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.zeros((232, 612, 3), np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{number}.jpg"), pixels)
    cv2.imwrite(str(tmp_path / "a" / "square.jpg"), np.zeros((48, 48, 3), np.uint8))
    said = "612×232, resized to 24×24: are these aligned? python -m tools.align"
    square = "48×48, resized to 24×24\n"
    with caplog.at_level(logging.WARNING):
        loader = load(open_faces(tmp_path))
        list(loader)
        list(loader)
    assert caplog.text.count(said) == caplog.text.count(square) == 1
    caplog.clear()
    files = FileImages(sorted(tmp_path.glob("*/*.jpg")))
    embed_faces(lambda images: images.float().mean((2, 3)), files, 24)
    assert caplog.text.count(said) == 1
    caplog.clear()
    list(load(open_set(FACES)))
    assert "resized" not in caplog.text
