"""tools.align on folders of photos: what becomes a crop, and what is said of the rest."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest

from data.align import TEMPLATE
from data.detect import load_detector
from data.faces import open_faces
from data.landmarks import TEMPLATE_SHARES, needed_landmarks
from data.types import Pixels
from tests.photographs import photograph
from tools.align import REPORT, crop_names, main
from tools.landmarks import main as find_landmarks


@pytest.fixture(scope="module")
def astronaut() -> Pixels:
    return photograph("astronaut")


def _save(path: Path, photo: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".heic":
        heic = pillow_heif.from_bytes("RGB", photo.shape[1::-1], photo.tobytes())
        heic.save(path, quality=80)
    else:
        assert cv2.imwrite(str(path), photo[:, :, ::-1])


def _report(out: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in (out / REPORT).read_text().splitlines()[1:]]
    return {photo: outcome for photo, outcome, _ in rows}


def test_folder_of_photos(
    tmp_path: Path, astronaut: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    half = np.ascontiguousarray(astronaut[::2, ::2])
    _save(photos / "ann" / "a.jpg", astronaut)
    _save(photos / "ann" / "b.png", half)
    _save(photos / "ann" / "c.heic", half)
    _save(photos / "ann" / "none.jpg", photograph("coffee"))
    _save(photos / "bob" / "two.jpg", np.hstack([half, half]))
    (photos / "bob" / "broken.jpg").write_bytes(b"\xff\xd8 no")
    (photos / "bob" / "film.mov").write_bytes(b"no photo")
    (photos / ".DS_Store").write_bytes(b"of the system")

    assert main([str(photos), str(out)]) == 0
    assert "3 aligned, 1 no_face, 1 other, 1 several, 1 unreadable" in capsys.readouterr().out
    assert _report(out) == {
        "bob/film.mov": "other",
        "ann/none.jpg": "no_face",
        "bob/broken.jpg": "unreadable",
        "bob/two.jpg": "several",
    }
    assert sorted(path.name for path in (out / "ann").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    crop = cv2.imread(str(out / "ann" / "a.jpg"))
    assert crop is not None
    assert crop.shape == (112, 112, 3)
    (face,) = load_detector()(np.array(crop[:, :, ::-1], np.uint8))
    assert np.linalg.norm(face.landmarks - TEMPLATE, axis=1).mean() < 5

    points = needed_landmarks(open_faces(out, check=False))
    assert np.linalg.norm(112 * (points - TEMPLATE_SHARES), axis=2).mean() < 5

    assert main([str(photos), str(out), "--largest"]) == 0
    both = open_faces(out)
    np.testing.assert_array_equal(needed_landmarks(both)[:3], points)
    (out / "landmarks.npy").unlink()
    assert find_landmarks([str(out)]) == 0
    found = needed_landmarks(both)
    assert np.linalg.norm(112 * (found[:3] - points), axis=2).mean() < 3
    assert "1 aligned, 3 kept, 1 no_face, 1 other, 1 unreadable" in capsys.readouterr().out


def test_names_of_crops() -> None:
    photos = [Path(name) for name in ("a/1.HEIC", "a/1.jpg", "a/2.png", "a/2.PNG", "b/1.jpeg")]
    assert {str(key): str(value) for key, value in crop_names(photos).items()} == {
        "a/1.HEIC": "a/1_HEIC.jpg",
        "a/1.jpg": "a/1.jpg",
        "a/2.png": "a/2_png.jpg",
        "a/2.PNG": "a/2_PNG_.jpg",
        "b/1.jpeg": "b/1.jpg",
    }


def test_heic_without_its_library_is_counted(
    tmp_path: Path,
    astronaut: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    _save(photos / "ann" / "a.jpg", astronaut)
    _save(photos / "ann" / "b.heic", astronaut)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert main([str(photos), str(out)]) == 0
    told = capsys.readouterr().out
    assert "1 aligned, 1 heic" in told
    assert "pip install -e '.[heic]'" in told
    assert _report(out) == {"ann/b.heic": "heic"}


def test_wrong_folders_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    _save(tmp_path / "plain" / "ann" / "a.jpg", np.zeros((50, 50, 3), np.uint8))
    for arguments, code, told in (
        ([f"{tmp_path}/none", f"{tmp_path}/out"], 2, "no such folder"),
        ([f"{photos}", f"{tmp_path}/out"], 2, "holds no photo"),
        ([f"{photos}", f"{photos}/out"], 2, "is inside"),
        ([f"{tmp_path}/plain", f"{tmp_path}/out"], 1, "none of the photos gave a crop"),
    ):
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
