"""A lost or wrong .idx: made again from the records, noticed, or refused."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.faces import open_faces
from data.formats import _record_index
from data.formats._record_bytes import MAGIC_BYTES, pack_image, pack_record, read_index
from data.types import FaceSet
from data.writers.records import write_records
from tools import convert, verify

GOLDEN = Path(__file__).parents[1] / "golden"
REAL = Path(__file__).parents[2] / "../shared/data/faces/train.rec"


@pytest.fixture(params=["insightface", "im2rec"])
def rec(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of the original tool with its index, whose records lie in several chunks."""
    for suffix in ("rec", "idx"):
        shutil.copy(GOLDEN / f"{request.param}.{suffix}", tmp_path / f"train.{suffix}")
    return tmp_path / "train.rec"


def _content(faces: FaceSet) -> list[tuple[int, str, bytes]]:
    labels = faces.labels.tolist()
    return [(label, faces.describe(i), faces.read(i)) for i, label in enumerate(labels)]


@pytest.mark.parametrize("chunk", [32, 1000, 1 << 22])
def test_a_lost_index_is_made_again(
    rec: Path, chunk: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_record_index, "CHUNK", chunk)
    index = rec.with_suffix(".idx")
    before, original = _content(open_faces(rec, check=False)), read_index(str(index))
    index.unlink()
    assert _content(open_faces(rec, check=False)) == before
    assert f"tools.convert {rec} {index}" in caplog.text
    assert not index.exists()
    assert convert.main([str(rec), str(index)]) == 0
    keys, offsets = read_index(str(index))
    order = np.argsort(original[0])
    assert keys.tolist() == original[0][order].tolist()
    assert offsets.tolist() == original[1][order].tolist()
    assert convert.main([str(rec), str(index)]) == 2  # it exists


def test_the_remade_index_is_cached_where_that_is_possible(
    rec: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rec.with_suffix(".idx").unlink()
    expected = _content(open_faces(rec, check=False))
    with monkeypatch.context() as patch:
        patch.setattr("data.formats.recordio.scan_records", None)
        assert _content(open_faces(rec, check=False)) == expected
    for cache in rec.parent.glob("*.npz"):
        cache.unlink()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("data.formats._index_cache.atomic_write", refuse)
    caplog.set_level(logging.INFO)
    assert _content(open_faces(rec, check=False)) == expected
    assert "cannot be written (Read-only file system); each opening scans" in caplog.text
    assert sorted(path.name for path in rec.parent.iterdir()) == ["train.rec"]


def test_ids_that_are_not_unique_are_replaced_by_places(tmp_path: Path) -> None:
    faces = open_faces("synthetic:identities=2,images=2,size=24")
    with open(tmp_path / "a.rec", "wb") as file:
        for index in range(4):
            file.write(pack_record(pack_image(faces.read(index), index // 2, 7)))
    found = open_faces(tmp_path / "a.rec")
    assert [found.describe(i).rpartition(" ")[2] for i in range(4)] == list("0123")
    assert [found.read(i) for i in range(4)] == [faces.read(i) for i in range(4)]


def test_an_index_without_its_first_lines_is_noticed(tmp_path: Path) -> None:
    faces = open_faces("synthetic:identities=3,images=3,size=24")
    rec = tmp_path / "a.rec"
    write_records(faces, str(rec), size=(24, 24), progress=lambda _: None)
    index = rec.with_suffix(".idx")
    lines = index.read_text().splitlines(keepends=True)
    for lost in (1, 4):
        index.write_text("".join(lines[lost:]))
        with pytest.raises(
            ValueError, match=r"a\.idx: lacks key 0.*python -m tools\.convert"
        ) as told:
            open_faces(rec)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["identities", "plain"])
def test_an_index_of_another_file_is_refused(tmp_path: Path, kind: str) -> None:
    """The other file has as many records, of other sizes."""
    for name, size in (("one", 24), ("two", 32)):
        faces = open_faces(f"synthetic:identities=3,images=3,size={size}")
        (tmp_path / name).mkdir()
        if kind == "identities":
            write_records(faces, f"{tmp_path}/{name}/a.rec", size=(1, 1), progress=lambda _: None)
            continue
        with open(tmp_path / name / "a.rec", "wb") as rec, open(rec.name[:-3] + "idx", "w") as idx:
            for index in range(9):
                idx.write(f"{index}\t{rec.tell()}\n")
                rec.write(pack_record(pack_image(faces.read(index), index // 3, index)))
    shutil.copy(tmp_path / "one/a.idx", tmp_path / "two/a.idx")
    with pytest.raises(ValueError, match=r"a\.idx: .* index of another file .*tools\.convert"):
        open_faces(tmp_path / "two/a.rec")


def test_a_file_without_records_or_with_half_a_record_has_no_index(rec: Path) -> None:
    rec.with_suffix(".idx").unlink()
    whole = rec.read_bytes()
    for content, told in (
        (b"", "holds no record"),
        (whole[:-5], "the last record is cut off"),
        (whole + b"junk", "no record begins here"),
    ):
        rec.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            open_faces(rec, check=False)
        assert convert.main([str(rec), str(rec.with_suffix(".idx"))]) == 2
    assert not list(rec.parent.glob("*.idx"))


def test_one_record_without_a_frame_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = open_faces("synthetic:identities=3,images=3,size=24")
    rec = tmp_path / "a.rec"
    with open(rec, "wb") as file, open(rec.with_suffix(".idx"), "w") as idx:
        for index in range(9):
            idx.write(f"{index}\t{file.tell()}\n")
            file.write(pack_record(pack_image(faces.read(index), index // 3, index)))
    data = bytearray(rec.read_bytes())
    at = data.index(MAGIC_BYTES, 100)
    data[at] ^= 1
    rec.write_bytes(data)
    for _ in range(2):  # the second time from the cache
        found = open_faces(rec)
        assert found.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
        assert [found.read(i) for i in range(8)] == [faces.read(i) for i in range(9) if i != 1]
        assert "1 records are broken and left out, the first has the key 1" in caplog.text
        caplog.clear()
    assert verify.main([str(rec)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"unreadable: {rec} key 1: no whole record with a label" in lines
    assert f"frame: {rec}: at byte {at}: no record begins here; the walk stops" in lines


@pytest.mark.skipif(not REAL.exists(), reason="needs the real records")
def test_the_real_index(tmp_path: Path) -> None:
    os.symlink(REAL.resolve(), tmp_path / "train.rec")
    assert convert.main([str(tmp_path / "train.rec"), str(tmp_path / "train.idx")]) == 0
    assert (tmp_path / "train.idx").read_bytes() == REAL.with_suffix(".idx").read_bytes()
