"""tools.align on a folder, with a detector that reads the number of faces from the brightness."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.align import TEMPLATE
from tools.align import REPORT, align_folder


def test_folder_reports_what_it_left_out(tmp_path: Path) -> None:
    """The brightness of a photo is the number of its faces."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name, faces in (("ann/a.jpg", 1), ("ann/b.png", 0), ("bob/c.jpg", 2)):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(photos / name), np.full((150, 150, 3), faces * 100, np.uint8))
    (photos / "bob" / "broken.jpg").write_bytes(b"\xff\xd8 no")
    calls = []

    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        faces = round(float(image.mean()) / 100)
        return np.array([[0, 0, 50 + i, 50] for i in range(faces)]).reshape(-1, 4), np.array(
            [TEMPLATE] * faces
        )

    counts = align_folder(photos, out, detect)
    assert counts == {"aligned": 1, "no_face": 1, "several": 1, "unreadable": 1}
    rows = [line.split("\t")[:2] for line in (out / REPORT).read_text().splitlines()[1:]]
    assert rows == [
        ["ann/b.png", "no_face"],
        ["bob/broken.jpg", "unreadable"],
        ["bob/c.jpg", "several"],
    ]
    crop = cv2.imread(str(out / "ann" / "a.jpg"))
    assert crop is not None
    assert crop.shape == (112, 112, 3)
    assert len(calls) == 3
    again = align_folder(photos, out, detect, largest=True)
    assert again == {"kept": 1, "aligned": 1, "no_face": 1, "unreadable": 1}
    with pytest.raises(ValueError, match="holds no photo"):
        align_folder(tmp_path / "none", out, detect)
