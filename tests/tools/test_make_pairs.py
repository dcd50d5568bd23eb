"""Pairs of a user's own photos: both forms hold the same pairs, and the benchmark reads them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.pairs.lists import from_bin, from_list
from data.pairs.verification_bin import read_bin
from tools.make_pairs import main


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for person in range(25):
        for number in range(4):
            path = tmp_path / "faces" / f"some one {person}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return tmp_path


def test_list_and_bin_hold_the_same_pairs(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("bin", "txt"):
        assert main([f"{faces}/faces", f"{faces}/a.{kind}", "--count", "40"]) == 0
        assert "40 pairs, 20 of one person" in capsys.readouterr().out
    images, same = read_bin(faces / "a.bin")
    listed = from_list(faces / "a.txt", faces / "faces")
    assert images[0::2] == [listed.images.read(int(row)) for row in listed.first]
    assert images[1::2] == [listed.images.read(int(row)) for row in listed.second]
    assert same.tolist() == listed.same.tolist()
    assert from_bin(faces / "a.bin").notes == ()
    assert len(set((faces / "a.txt").read_text().splitlines())) == 40


def test_wrong_arguments_are_one_line(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic = "synthetic:identities=30,images=3,first=0,seed=0,size=32"
    for arguments, told in (
        ([f"{faces}/faces", "x.pickle"], "x.pickle"),
        ([f"{faces}/nobody", f"{faces}/x.bin"], "nobody"),
        ([f"{faces}/faces", f"{faces}/x.bin", "--count", "9000"], "at most 240 pairs"),
        ([synthetic, f"{faces}/x.txt", "--count", "20"], ".bin instead"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in faces.iterdir()) == ["faces"]
