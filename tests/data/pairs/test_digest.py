"""The digest of pairs: one for the same pairs wherever they lie, another for any other pairs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.pairs.drawn import from_faces
from data.pairs.lists import from_list, from_numbered, pairs_digest

SYNTHETIC = "synthetic:identities=40,images=4"


def _png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + shade, 8), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def _list(folder: Path, lines: list[str]) -> str:
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(_png(ord(name)))
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return from_list(folder / "pairs.txt", folder).digest


def test_a_list_is_known_wherever_it_lies(tmp_path: Path) -> None:
    lines = ["a.png b.png 1", "c.png d.png 0"]
    digest = _list(tmp_path / "here", lines)
    assert len(bytes.fromhex(digest)) == 16
    assert _list(tmp_path / "there", lines) == digest
    others = [lines[::-1], ["a.png b.png 0", lines[1]], ["a.png c.png 1", lines[1]], lines[:1]]
    found = {_list(tmp_path / str(place), other) for place, other in enumerate(others)}
    assert len(found | {digest}) == 5


def test_numbered_images_are_told_apart_by_size(tmp_path: Path) -> None:
    digests: list[str] = []
    for shades in ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 9)):
        folder = tmp_path / str(len(digests))
        (folder / "imgs").mkdir(parents=True)
        for place, shade in enumerate(shades):
            (folder / f"imgs/{place}.png").write_bytes(_png(shade))
        np.save(folder / "pair_label.npy", np.array([True, False]))
        digests.append(from_numbered(folder).digest)
    assert digests[0] == digests[1] != digests[2]


def test_drawn_pairs_are_known_by_their_draw() -> None:
    digest = from_faces(SYNTHETIC, count=40).digest
    assert from_faces(SYNTHETIC, count=40).digest == digest
    others = [from_faces(SYNTHETIC, count=40, seed=1), from_faces(SYNTHETIC, count=60)]
    assert digest not in {other.digest for other in others}


def test_names_that_are_no_unicode_have_a_digest() -> None:
    rows = np.array([0]), np.array([1]), np.array([True])
    assert pairs_digest(["a\udcff", "b"], *rows) != pairs_digest(["a", "b"], *rows)
