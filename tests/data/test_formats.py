"""Formats other than record files, written by their usual tools: whole files and broken ones."""

from __future__ import annotations

import copy
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest

from data.decode import DecodeError, decode
from data.faces import detect_format, find_missing_path, open_faces, resolve_path
from data.landmarks import landmarks_file, landmarks_of, write_landmarks
from data.parts import find_part, part_names
from data.types import FaceSet

REAL_ZIP = Path(__file__).parents[2] / "../shared/data/faces/lfw_112.zip"


def encoded(number: int, kind: str = ".jpg") -> bytes:
    image = np.full((12, 12, 3), number * 20 % 256, np.uint8)
    image[: number % 12] = (200, 10, 90)
    return cv2.imencode(kind, image)[1].tobytes()


# name -> bytes, not sorted; identity b has one image, and c has a PNG
FILES = {
    "c/z.png": encoded(5, ".png"),
    "a/2.jpg": encoded(2),
    "b/only.jpeg": encoded(3),
    "a/1.jpg": encoded(1),
    "c/é long name.jpg": encoded(4),
}


def by_label(faces: FaceSet) -> dict[int, set[bytes]]:
    out: dict[int, set[bytes]] = {}
    for index, label in enumerate(faces.labels.tolist()):
        out.setdefault(label, set()).add(faces.read(index))
    return out


EXPECTED = {
    label: {data for name, data in FILES.items() if name[0] == "abc"[label]} for label in range(3)
}


def make_folder(path: Path) -> Path:
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "a" / "notes.txt").write_text("no image")
    return path


def make_zip(
    path: Path, compression: int = zipfile.ZIP_STORED, names: tuple[str, ...] = tuple(FILES)
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/", b"")
        for name in names:
            archive.writestr(name, FILES[name])
        archive.writestr("README.txt", "no image")
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def make_tar(path: Path, *, labels: bool, form: int = tarfile.GNU_FORMAT, prefix: str = "") -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for number, (name, data) in enumerate(FILES.items()):
            if labels:
                add(archive, f"{number:06d}.jpg", data)
                add(archive, f"{number:06d}.cls", str("abc".index(name[0])).encode())
                add(archive, f"{number:06d}.json", b"{}")
            else:
                add(archive, prefix + name, data)
    return path


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def make_lmdb(path: Path, *, datum: bool = True, padding: int = 0) -> Path:
    """F²C's layout, written by liblmdb; `padding` other keys give the tree branches."""
    environment = lmdb.open(str(path), map_size=1 << 24)
    with environment.begin(write=True) as transaction, open(path / "faces_kv.txt", "w") as keys:
        for number in range(padding):
            transaction.put(b"other_%d" % number, b"x" * (number % 300))
        for name, data in FILES.items():
            key = f"faces_{hashlib.md5(name.encode()).hexdigest()}"
            transaction.put(key.encode(), b"\x0a" + varint(len(data)) + data if datum else data)
            keys.write(f"{key} {'abc'.index(name[0])}\n")
    environment.close()
    return path


def all_sets(tmp: Path) -> dict[str, Path]:
    long = "deep" * 40 + "/"
    tmp.mkdir(exist_ok=True)
    shards = tmp / "shards"
    shards.mkdir()
    names = tuple(FILES)
    make_zip(shards / "0_0.zip", names=names[:2])
    make_zip(shards / "0_1.zip", zipfile.ZIP_DEFLATED, names=names[2:])
    return {
        "folder": make_folder(tmp / "folder"),
        "zip stored": make_zip(tmp / "stored.zip"),
        "zip deflated": make_zip(tmp / "deflated.zip", zipfile.ZIP_DEFLATED),
        "zip shards": shards,
        "tar cls": make_tar(tmp / "labels.tar", labels=True),
        "tar folders": make_tar(tmp / "folders.tar", labels=False),
        "tar gnu long": make_tar(tmp / "gnu.tar", labels=False, prefix=long),
        "tar pax long": make_tar(
            tmp / "pax.tar", labels=False, form=tarfile.PAX_FORMAT, prefix=long
        ),
        "tar ustar": make_tar(
            tmp / "ustar.tar", labels=False, form=tarfile.USTAR_FORMAT, prefix="x" * 90 + "/"
        ),
        "lmdb datum": make_lmdb(tmp / "lmdb"),
        "lmdb raw": make_lmdb(tmp / "lmdb_raw", datum=False),
        "lmdb deep": make_lmdb(tmp / "lmdb_deep", padding=20000),
    }


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return all_sets(tmp_path_factory.mktemp("sets"))


KINDS = [
    "folder",
    "zip stored",
    "zip deflated",
    "zip shards",
    "tar cls",
    "tar folders",
    "tar gnu long",
    "tar pax long",
    "tar ustar",
    "lmdb datum",
    "lmdb raw",
    "lmdb deep",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_images_by_identity(kind: str, sets: dict[str, Path]) -> None:
    for _ in range(2):  # The second opening uses the index beside the files.
        faces = open_faces(sets[kind])
        assert by_label(faces) == EXPECTED
        assert faces.num_classes == 3
        assert str(sets[kind]) in faces.describe(0)
        assert detect_format(sets[kind]) == kind.split()[0]
    assert by_label(copy.deepcopy(faces)) == EXPECTED  # as in another process


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_has_landmarks_beside_it(kind: str, sets: dict[str, Path]) -> None:
    faces = open_faces(sets[kind])
    assert landmarks_of(faces) is None
    file = landmarks_file(faces)
    assert file is not None
    points = np.linspace(0.1, 0.9, 50, dtype=np.float32).reshape(5, 5, 2)
    write_landmarks(file, faces, points)
    again = open_faces(sets[kind])
    np.testing.assert_array_equal(landmarks_of(again), points)
    assert by_label(again) == EXPECTED
    file.unlink()


@pytest.mark.parametrize("kind", ["folder", "zip stored", "tar folders"])
def test_identities_keep_their_names(kind: str, sets: dict[str, Path]) -> None:
    faces: Any = open_faces(sets[kind])
    assert faces.names == ["a", "b", "c"]


def test_concatenation_moves_identities(sets: dict[str, Path]) -> None:
    both = open_faces(f"concat:{sets['folder']};{sets['lmdb raw']}")
    assert both.num_classes == 6
    assert by_label(both) == {
        **EXPECTED,
        **{label + 3: images for label, images in EXPECTED.items()},
    }
    assert "data.mdb" in both.describe(len(both) - 1)
    assert "folder" in both.describe(0)
    root = sets["folder"].parent
    assert sets["lmdb raw"].parent == root
    line = f"concat:{sets['folder'].name};{sets['lmdb raw'].name};synthetic:identities=2;/elsewhere"
    expected = f"concat:{sets['folder']};{sets['lmdb raw']};synthetic:identities=2;/elsewhere"
    assert resolve_path(line, str(root)) == expected
    assert resolve_path(line, None) == line
    assert find_missing_path(expected) == "/elsewhere"


def test_zip64_members_are_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert by_label(open_faces(tmp_path / "big.zip")) == EXPECTED


def test_folder_with_an_empty_identity_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match=r"/d: holds no image"):
        open_faces(tmp_path)


def test_detection_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        open_faces(tmp_path / "nothing")
    with pytest.raises(ValueError, match="none of the known formats"):
        open_faces(tmp_path)
    make_folder(tmp_path)
    make_zip(tmp_path / "x.zip")
    with pytest.raises(ValueError, match="could be folder or zip; name the format"):
        open_faces(tmp_path)
    assert by_label(open_faces(tmp_path, "zip")) == EXPECTED
    with pytest.raises(ValueError, match="there is no 'zap' in formats; did you mean zip"):
        open_faces(tmp_path, "zap")


def test_every_format_exports_what_it_must() -> None:
    for name in part_names("data.formats"):
        part = find_part("data.formats", name)
        assert callable(part.detect)
        assert callable(part.open_set)
        assert not part.detect("/no/such/place")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: (path.with_suffix(".zip")).write_bytes(b"PK\x03\x04 nothing"),
            "no zip directory",
        ),
        (lambda path: make_zip(path.with_suffix(".zip"), names=()), "holds no image"),
        (lambda path: path.with_suffix(".tar").write_bytes(b"x" * 1024), "no tar header"),
        (lambda path: path.with_suffix(".tar").write_bytes(b""), "without an end mark"),
    ],
)
def test_broken_archives_are_named(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "bad")
    with pytest.raises(ValueError, match=message):
        open_faces(next(tmp_path.iterdir()))


@pytest.mark.parametrize("kind", ["zip stored", "tar folders", "lmdb raw"])
def test_truncation_is_found(kind: str, sets: dict[str, Path], tmp_path: Path) -> None:
    source = sets[kind]
    name = "data.mdb" if source.is_dir() else source.name
    whole = (source / name if source.is_dir() else source).read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096 if source.is_dir() else 1024):
        (tmp_path / name).write_bytes(whole[:size])
        if source.is_dir():
            (tmp_path / "x_kv.txt").write_bytes((source / "faces_kv.txt").read_bytes())
        with pytest.raises(ValueError, match=name):
            open_faces(tmp_path / name)


def test_zip_member_that_changed_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip")
    faces = open_faces(path)
    whole = path.read_bytes()
    index = next(i for i in range(len(faces)) if faces.read(i) == FILES["a/1.jpg"])
    at = whole.find(FILES["a/1.jpg"])
    path.write_bytes(whole[: at + 40] + bytes([whole[at + 40] ^ 1]) + whole[at + 41 :])
    with pytest.raises(ValueError, match=r"a/1.jpg.*checksum"):
        open_faces(path).read(index)
    moved = whole.replace(b"a/1.jpg", b"b/1.jpg", 1)
    path.write_bytes(moved)
    with pytest.raises(ValueError, match=r"found b'b/1.jpg', expected an image of b'a'"):
        open_faces(path).read(index)


def test_decode_to_rgb_at_the_asked_size() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, :, 0] = 255  # red in RGB
    data = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    assert np.array_equal(decode(data, 20), image)
    assert np.array_equal(decode(data, 10), image[:10, :10])
    assert decode(cv2.imencode(".png", image[:, :, 0])[1].tobytes(), 8).shape == (8, 8, 3)


def test_decode_shrinks_by_pixel_averages() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    data = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    expected = image.reshape(12, 2, 12, 2, 3).mean((1, 3))
    assert np.abs(decode(data, 12) - expected).max() <= 0.5


@pytest.mark.parametrize(
    "data", [b"", b"junk", encoded(1)[:-200], b"\xff\xd8\xff\xd9", encoded(5, ".png")[:50]]
)
def test_undecodable_bytes(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, 12)


def test_real_zip() -> None:
    if not REAL_ZIP.exists():
        pytest.skip("../shared/data/faces/lfw_112.zip is not here")
    part = find_part("data.formats", "zip")
    columns = part._scan([str(REAL_ZIP)])
    assert len(columns["labels"]) == 13233
    assert len(columns["names"]) == 5749
