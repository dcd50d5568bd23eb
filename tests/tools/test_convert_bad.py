"""Images that cannot be read do not end a conversion: they are named, and left out if asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.decode import decode_any
from data.faces import open_faces
from data.formats import folder
from data.formats._record_bytes import pack_image, pack_record
from data.types import FaceSet
from data.writers._bad import BadImages
from data.writers.records import write_records
from tools import convert

IMAGES, BAD = 12, (0, 4, 5, 11)
KINDS = {"rec": "x.rec", "zip": "x.zip", "tar": "x.tar", "folder": "x", "shards": "x"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three people with four images each. Four of the twelve images are empty files."""
    faces = open_faces("synthetic:identities=3,images=4,size=24")
    for index in range(IMAGES):
        path = tmp_path / "faces" / f"p{faces.labels[index]}" / f"{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if index in BAD else faces.read(index))
    return tmp_path / "faces"


def _mend(source: Path, index: int) -> None:
    faces = open_faces("synthetic:identities=3,images=4,size=24")
    (source / f"p{index // 4}/{index:02d}.jpg").write_bytes(faces.read(index))


def _arguments(source: Path, kind: str) -> tuple[list[str], Path]:
    target = source.with_name(KINDS[kind])
    shards = ["--to", "zip", "--shard", "3"] if kind == "shards" else []
    return [str(source), str(target), "--json", *shards], target


def _told(capsys: pytest.CaptureFixture[str], word: str) -> list[int]:
    """The numbers of the images that were printed behind a word."""
    lines = capsys.readouterr().out.splitlines()
    return [int(line.split(".jpg")[0][-2:]) for line in lines if line.startswith(f"{word}: ")]


def _images(target: Path) -> list[tuple[int, bytes]]:
    faces = open_faces(target)
    return sorted((label, faces.read(i)) for i, label in enumerate(faces.labels.tolist()))


def _good(source: Path) -> list[tuple[int, bytes]]:
    files = [path for path in sorted(source.rglob("*.jpg")) if path.stat().st_size]
    return sorted((int(path.parent.name[1:]), path.read_bytes()) for path in files)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are read from the source, one after the other."""
    read, seen = folder.FolderSet.read, []

    def noted(faces: folder.FolderSet, index: int) -> bytes:
        seen.append(index)
        return read(faces, index)

    monkeypatch.setattr(folder.FolderSet, "read", noted)
    return seen


@pytest.mark.parametrize("kind", list(KINDS))
def test_all_bad_images_are_named_and_a_second_call_leaves_them_out(
    kind: str, source: Path, reads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, target = _arguments(source, kind)
    assert convert.main(arguments) == 1
    printed, error = capsys.readouterr()
    lines = printed.splitlines()
    assert [line.split(".jpg")[0][-2:] for line in lines if line.startswith("bad: ")] == [
        f"{index:02d}" for index in BAD
    ]
    assert json.loads(lines[-1]) == {"images": 8, "identities": 3, "bad": 4}
    assert "4 images cannot be read" in error
    assert "--skip-bad" in error
    if kind in ("rec", "zip", "tar"):
        assert not target.exists()

    reads.clear()
    assert convert.main([*arguments, "--skip-bad"]) == 0
    assert _told(capsys, "left out") == list(BAD)
    # Good images are not read again, but for the last record and the one whose size is looked up.
    assert len(set(reads) - set(BAD)) <= (2 if kind == "rec" else 0)
    assert _images(target) == _good(source)
    left = [path.name for path in source.parent.rglob(".*")]
    assert [name for name in left if "npz" not in name] == []


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("mended", [(0,), (5,), (4, 11), BAD])
def test_mended_images_are_taken_by_the_next_call(
    kind: str, mended: tuple[int, ...], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, target = _arguments(source, kind)
    assert convert.main(arguments) == 1
    for index in mended:
        _mend(source, index)
    capsys.readouterr()
    left = [index for index in BAD if index not in mended]
    assert convert.main(arguments) == (1 if left else 0)
    assert _told(capsys, "bad") == left
    if left:
        assert convert.main([*arguments, "--skip-bad"]) == 0
    assert _images(target) == _good(source)


@pytest.mark.parametrize("stop_at", range(1, IMAGES + 4))
def test_a_killed_record_conversion_with_bad_images_ends_with_the_same_bytes(
    stop_at: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.writers.records.FLUSH_EVERY", 2)

    class Killed(Exception):
        pass

    def write(name: str, progress: Callable[[int], None]) -> None:
        faces: FaceSet = open_faces(source)
        bad = BadImages(faces, skip=True)
        write_records(faces, f"{tmp_path}/{name}/x.rec", size=(24, 24), progress=progress, bad=bad)

    count = 0

    def stop(images: int) -> None:
        nonlocal count
        count += images
        if count >= stop_at:
            raise Killed

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    write("whole", lambda _: None)
    with pytest.raises(Killed):
        write("cut", stop)
    write("cut", lambda _: None)
    for name in ("x.rec", "x.idx", "property", "x_names.txt"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(list((tmp_path / "cut").iterdir())) == 4


def test_a_drive_that_fails_is_a_bad_image_too(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in BAD:
        _mend(source, index)
    read = folder.FolderSet.read

    def fails(faces: folder.FolderSet, index: int) -> bytes:
        if index == 7:
            raise OSError(5, "Input/output error", faces.describe(index))
        return read(faces, index)

    monkeypatch.setattr(folder.FolderSet, "read", fails)
    arguments, target = _arguments(source, "rec")
    assert convert.main([*arguments, "--skip-bad"]) == 0
    assert _told(capsys, "left out") == [7]
    faces = open_faces(target)
    assert len(faces) == 11
    assert all(decode_any(faces.read(i)).shape == (24, 24, 3) for i in range(11))


def test_a_record_without_a_label_is_bad_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = open_faces("synthetic:identities=3,images=4,size=24")
    rec, at = tmp_path / "a.rec", []
    with open(rec, "wb") as file, open(rec.with_suffix(".idx"), "w") as idx:
        for index in range(IMAGES):
            at.append(file.tell())
            idx.write(f"{index}\t{at[-1]}\n")
            file.write(pack_record(pack_image(faces.read(index), index // 4, index)))
    data = bytearray(rec.read_bytes())
    data[at[5]] ^= 1
    rec.write_bytes(data)
    for target in ("b.rec", "c.zip", "d.tar"):
        (tmp_path / target[0]).mkdir()
        path = tmp_path / target[0] / target
        assert convert.main([str(rec), str(path)]) == 1
        assert f"bad: {rec} key 5: no whole record with a label" in capsys.readouterr().out
        assert not path.exists()
        assert convert.main([str(rec), str(path), "--skip-bad"]) == 0
        assert len(open_faces(path)) == 11


def test_a_broken_record_is_left_out_of_its_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = open_faces("synthetic:identities=3,images=4,size=24")
    rec = tmp_path / "a.rec"
    write_records(faces, str(rec), size=(24, 24), progress=lambda _: None)
    at = open_faces(rec).offsets[5]  # type: ignore[attr-defined]
    data = bytearray(rec.read_bytes())
    data[at] ^= 1
    rec.write_bytes(data)
    assert convert.main([str(rec), str(tmp_path / "b.tar")]) == 1
    assert f"bad: {rec} key 6: " in capsys.readouterr().out
    assert convert.main([str(rec), str(tmp_path / "b.tar"), "--skip-bad"]) == 0
    assert len(open_faces(tmp_path / "b.tar")) == 11
