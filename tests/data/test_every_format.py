"""Each format of data/formats/ that has a file of its name in tests/data/sets/, which writes a set.

A new format is tested as soon as it has such a file. Files from the formats' own tools, and broken
ones, are in test_formats.py and test_recordio.py.
"""

import copy
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.faces import detect_format, open_faces
from data.loader import Loader
from data.parts import find_part, part_names
from data.types import FaceSet

SETS = Path(__file__).parent / "sets"
NAMES = part_names("data.formats")
WRITTEN = [name for name in NAMES if (SETS / f"{name}.py").exists()]


def _encoded(shade: int) -> bytes:
    return cv2.imencode(".jpg", np.full((8, 8, 3), shade, np.uint8))[1].tobytes()


PEOPLE = {
    "ann": [_encoded(10), _encoded(20), _encoded(30)],
    "ben": [_encoded(90)],
    "cara": [_encoded(150), _encoded(160)],
}


def _read(faces: FaceSet) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in range(faces.num_classes)]
    for index, label in enumerate(faces.labels.tolist()):
        found[label].append(faces.read(index))
    return found


def test_every_set_is_of_a_format() -> None:
    assert {path.stem for path in SETS.glob("*.py")} <= set(NAMES)


@pytest.mark.parametrize("name", WRITTEN)
def test_images_come_back_by_person(name: str, tmp_path: Path) -> None:
    path = runpy.run_path(str(SETS / f"{name}.py"))["make"](tmp_path, PEOPLE)
    assert detect_format(path) == name
    for _ in range(2):  # an index beside the files may serve the second opening
        faces = open_faces(path)
        assert len(faces) == 6
        assert faces.num_classes == 3
        assert faces.labels.dtype == np.int64
        assert [sorted(images) for images in _read(faces)] == list(PEOPLE.values())
        assert str(path) in faces.describe(5)
    assert _read(copy.deepcopy(faces)) == _read(faces)  # as in another process
    batches = list(Loader(faces, batch_size=3, size=8, seed=0, threads=2))
    assert sum(len(batch.labels) for batch in batches) == 6


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_set_is_not_detected(name: str, tmp_path: Path) -> None:
    part = find_part("data.formats", name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").write_text("no set of faces")
    (tmp_path / "photo.jpg").write_bytes(_encoded(100))
    for path in ("empty", "notes", "photo.jpg", "missing"):
        assert not part.detect(str(tmp_path / path)), path
    with pytest.raises((ValueError, OSError), match="missing"):
        part.open_set(str(tmp_path / "missing"))
