"""One rule for names: hidden entries are nothing, the rest is counted, odd names survive."""

from __future__ import annotations

import io
import os
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.faces import open_faces
from data.images import image_files, open_images
from data.names import archive_name, folder_name, is_hidden, member_path
from data.text import unescape_name
from eval.extract import open_source
from scripts._lmdb import write_lmdb
from tools import convert

PEOPLE = [f"person{number}" for number in range(6)]
JUNK = ["__MACOSX/{0}/._{1}.jpg", "{0}/._{1}.jpg", "{0}/.ipynb_checkpoints/{1}-checkpoint.jpg"]


def jpeg(value: int = 0) -> bytes:
    return cv2.imencode(".jpg", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def finder_files() -> dict[str, bytes]:
    """36 images of 6 people, and what a Mac, Jupyter and Windows add."""
    files = {}
    for person in PEOPLE:
        files[f"{person}/Thumbs.db"] = b"thumbs"
        for image in range(6):
            files[f"{person}/{image}.jpg"] = jpeg(40 * image)
            files |= {name.format(person, image): b"junk" for name in JUNK}
    return files


def write_folder_of(files: dict[str, bytes], path: Path) -> None:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def write_zip_of(files: dict[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar_of(files: dict[str, bytes], path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


PACKED: dict[str, Callable[[dict[str, bytes], Path], None]] = {
    "set": write_folder_of,
    "set.zip": write_zip_of,
    "set.tar": write_tar_of,
}


@pytest.mark.parametrize("kind", PACKED)
def test_hidden_entries_are_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PACKED[kind](finder_files(), tmp_path / kind)
    for _ in range(2):  # the second opening uses an index
        faces: Any = open_faces(tmp_path / kind)
        assert (len(faces), faces.num_classes, faces.names) == (36, 6, PEOPLE)
    assert "left out" not in caplog.text


def test_hidden_files_are_nothing_where_images_are_listed(tmp_path: Path) -> None:
    write_folder_of(finder_files(), tmp_path / "set")
    write_zip_of(finder_files(), tmp_path / "set.zip")
    assert len(image_files(tmp_path / "set")) == 36
    assert len(image_files(tmp_path / "set", people=True)) == 36
    assert len(open_source(str(tmp_path / "set"))[1]) == 36
    assert len(open_images(tmp_path / "set.zip", ["person0/1", "person3/5.jpg"])) == 2
    with pytest.raises(FileNotFoundError, match="lacks 1 of the listed images"):
        open_images(tmp_path / "set.zip", ["._1"])


@pytest.mark.parametrize("suffix", ["zip", "tar", "rec"])
def test_a_hidden_file_beside_a_set_is_nothing(suffix: str, tmp_path: Path) -> None:
    source = "synthetic:identities=2,images=2,size=24"
    assert convert.main([source, str(tmp_path / f"set.{suffix}")]) == 0
    (tmp_path / f"._set.{suffix}").write_bytes(b"Mac OS X")
    assert len(open_faces(tmp_path)) == 4


def test_a_hidden_list_beside_an_lmdb_is_nothing(tmp_path: Path) -> None:
    write_lmdb(open_faces("synthetic:identities=2,images=2,size=24"), tmp_path)
    (tmp_path / "._images_kv.txt").write_bytes(b"Mac OS X")
    assert len(open_faces(tmp_path)) == 4


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): content for name, content in finder_files().items()}
    write_zip_of(files, tmp_path / "a.zip")
    faces: Any = open_faces(tmp_path / "a.zip")
    assert (len(faces), faces.names) == (36, PEOPLE)
    assert faces.read(7) == jpeg(40)
    assert len(open_images(tmp_path / "a.zip", ["person0/1", "person3\\5.jpg"])) == 2
    write_tar_of(files, tmp_path / "a.tar")
    # A name with a slash, "./person0\\1.jpg", has its backslash for itself.
    with pytest.raises(ValueError, match="neither a .cls label nor a folder"):
        open_faces(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["set.zip", "set.tar", "set"])
def test_what_is_left_out_is_counted_and_said_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"a/1.jpg": jpeg(), "b/1.JPG": jpeg(1), "b/2.jfif": jpeg(2), "b/3.TIF": tiff()}
    files |= {"a/notes.txt": b"", "b/4.heic": b"", "b/5.docx": b""}
    PACKED[kind](files, tmp_path / kind)
    if kind == "set":
        (tmp_path / "set/c.jpg").write_bytes(jpeg())
        (tmp_path / "set/b/deeper").mkdir()
        (tmp_path / "set/b/deeper/1.jpg").write_bytes(jpeg())
        (tmp_path / "set/b/6.jpg").symlink_to("nowhere")
        (tmp_path / "set/b/7.jpg").symlink_to("7.jpg")
        (tmp_path / "set/b/8.jpg").mkdir()
    if kind == "set.tar":
        with tarfile.open(tmp_path / kind, "a") as archive:
            link = tarfile.TarInfo("b/9.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "1.JPG"
            archive.addfile(link)
    for _ in range(2):
        caplog.clear()
        assert len(open_faces(tmp_path / kind)) == 4
        (said,) = [line for line in caplog.messages if "left out" in line]
        assert "3 without the suffix of an image, the first is" in said
        assert ("1 in no person's folder" in said) == (kind == "set")
        assert ("2 folders inside a person's folder" in said) == (kind == "set")
        assert ("2 links without a file" in said) == (kind == "set")
        assert ("1 links without a file" in said) == (kind == "set.tar")


def tiff() -> bytes:
    return cv2.imencode(".tif", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


ODD = [
    "tab\there",
    "line\u2028separator",
    "\udce9t\udce9",
    "back\\slash\\x41",
    "Zoë",
    "a: b",
    "plain",
]


def test_odd_names_survive_every_conversion_there_and_back(tmp_path: Path) -> None:
    for number, name in enumerate(ODD):
        (tmp_path / "first" / name).mkdir(parents=True)
        (tmp_path / "first" / name / "1.jpg").write_bytes(jpeg(30 * number))
    source = tmp_path / "first"
    expected = sorted(ODD, key=os.fsencode)
    for step in ("a.zip", "b", "c.tar", "d", "rec/e.rec", "f.tar", "rec/g.rec", "h.zip", "i"):
        target = tmp_path / step
        target.parent.mkdir(exist_ok=True)
        if target.suffix == ".rec":
            target = tmp_path / target.stem / target.name
            target.parent.mkdir()
        assert convert.main([str(source), str(target)]) == 0, step
        faces: Any = open_faces(target)
        by_name = {faces.names[faces.labels[row]]: faces.read(row) for row in range(len(ODD))}
        assert by_name == {name: jpeg(30 * number) for number, name in enumerate(ODD)}, step
        source = target
    names = [os.fsencode(path.name) for path in (tmp_path / "i").iterdir()]
    assert sorted(names) == [os.fsencode(name) for name in expected]


def test_names_of_joined_sets_survive(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder_of({f"{name}{n}/1.jpg": jpeg(n) for n in range(2)}, tmp_path / name)
    joined = f"concat:{tmp_path}/a;{tmp_path}/b"
    assert convert.main([joined, str(tmp_path / "c.tar")]) == 0
    found: Any = open_faces(tmp_path / "c.tar")
    assert found.names == ["a0", "a1", "b0", "b1"]


def test_a_target_whose_name_is_not_utf8_is_told_without_an_error(tmp_path: Path) -> None:
    target = f"{tmp_path}/\udce9t\udce9.zip"
    assert convert.main(["synthetic:identities=2,images=2,size=24", target]) == 0
    assert len(open_faces(target)) == 4


anything = st.text(st.characters(exclude_categories=()), min_size=1)


@given(anything)
def test_names_in_archives_come_back_and_leave_no_folder(name: str) -> None:
    written = archive_name(name)
    inside = member_path(f"{written}/1.jpg".encode())
    assert inside is not None
    assert inside.rpartition(b"/")[0] == written.encode()
    parts = [part for part in name.split("/") if part]
    assert unescape_name(written) == ("/".join(parts) or "_")


@given(anything)
def test_names_of_folders_are_one_visible_folder(name: str) -> None:
    written = folder_name(name)
    assert "/" not in written
    assert "\0" not in written
    assert not is_hidden(written)
    if "/" not in name and "\0" not in name and not is_hidden(name):
        assert written == name


def test_lists_name_files_in_any_spelling(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    for name, listed in ((composed, decomposed), (decomposed, composed)):
        root = tmp_path / name.encode().hex()
        write_folder_of({f"{name}/{name}_0001.JPG": jpeg()}, root)
        write_zip_of({f"{name}/{name}_0001.JPG": jpeg()}, root / "a.zip")
        for images in (root, root / "a.zip"):
            for wanted in (f"{listed}/{listed}_0001", f"{listed}\\{listed}_0001.JPG"):
                assert open_images(images, [wanted]).read(0) == jpeg()
    with pytest.raises(FileNotFoundError, match=r"Zoe\\u0308\\xa0x: no such image"):
        open_images(tmp_path, [f"{decomposed}\xa0x"])


@pytest.mark.parametrize("suffix", [".jfif", ".tif", ".TIFF", ".JPG", ".jpe", ".pgm"])
def test_suffixes_of_images(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"1{suffix}").write_bytes(jpeg())
    assert len(open_faces(tmp_path)) == 2
    assert open_images(tmp_path, ["a/1"]).read(0) == jpeg()
