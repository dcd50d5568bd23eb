"""tools.search: what it finds, the files it writes, and when the index is made again."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.extract import extract
from tests.tools.faces_and_models import crop, portrait, write_evaluation, write_image, write_run
from tools import _gallery
from tools._faces import FaceIn
from tools._gallery import open_gallery
from tools._model import ModelOptions
from tools._recognizer import Recognizer, open_recognizer
from tools.search import main, search_faces


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Nine crops of three people, a photo of a fourth, and a picture that shows nobody."""
    folder = tmp_path / "known"
    for person, name in enumerate(("ann", "bob", "<b>cy")):
        for number in range(3):
            write_image(folder / name / f"{number}.png", crop(10 * person + number))
    write_image(folder / "dan/photo.jpg", portrait())
    write_image(folder / "dan/nobody.jpg", np.zeros((90, 80, 3), np.uint8))
    return folder


def opened(run: Path) -> Recognizer:
    return open_recognizer(ModelOptions(str(run)))


def test_people_are_ranked_by_their_best_picture(run: Path, gallery: Path) -> None:
    """Against a literal ranking: each person's best cosine, over all pictures."""
    model = opened(run)
    known = open_gallery(gallery, model, "auto")
    assert sorted(set(known.names)) == ["<b>cy", "ann", "bob", "dan"]
    probes = [FaceIn(write_image(gallery.parent / f"{i}.png", crop(100 + i))) for i in range(4)]
    vectors = model.vectors(probes).astype(np.float64)
    for top in (1, 3, 9):
        for vector, found in zip(vectors, search_faces(probes, known, model, top), strict=True):
            best: dict[str, float] = {}
            cosines = known.vectors.astype(np.float64) @ vector
            for name, cosine in zip(known.names, cosines, strict=True):
                best[name] = max(cosine, best.get(name, -1))
            expected = sorted(best, key=lambda name: -best[name])[:top]
            assert [match.name for match in found.matches] == expected
            assert [match.cosine for match in found.matches] == pytest.approx(
                [best[name] for name in expected], abs=1e-12
            )


def test_files(run: Path, gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes, out = gallery.parent / "probes", gallery.parent / "found"
    write_image(probes / "pair.png", np.concatenate([portrait(), portrait()], 1))
    write_image(probes / "=one.png", crop(20))
    write_evaluation(gallery.parent, 0.5, 0.6, 0.7)
    words = [str(gallery), str(probes), "--model", str(run), "--evaluation", str(gallery.parent)]
    assert main([*words, "--out", str(out), "--top", "2", "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    record = json.loads((out / "matches.json").read_text())
    assert json.loads(printed[-1]) == record
    assert [one["faces"] for one in record["probes"]] == [1, 2, 2]
    best = [one["matches"][0] for one in record["probes"]]
    assert [(one["name"], one["word"]) for one in best] == [
        ("<b>cy", "same"),
        ("dan", "same"),
        ("dan", "same"),
    ]
    assert best[0]["cosine"] == 1
    assert record["gallery_left_out"] == [[f"{gallery}/dan/nobody.jpg", "no face was found"]]
    with open(out / "matches.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 3 * 2
    assert rows[1][1:4] == ["1", "1", "<b>cy"]
    page = (out / "matches.html").read_text()
    assert page.index("This page shows faces") < page.index("data:image/jpeg")
    assert page.count("data:image/jpeg") == 3 * 3
    assert "<b>cy" not in page
    assert "&lt;b&gt;cy" in page
    assert set(re.findall(r"(?:src|href)='(.{11})", page)) == {"data:image/"}
    assert any("index of 10 faces" in line for line in printed)


def test_flat_folders_and_single_photos(run: Path, tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        write_image(tmp_path / f"flat/{name}.png", crop(len(name) + ord(name[0])))
    model = opened(run)
    flat = open_gallery(tmp_path / "flat", model, "auto")
    assert flat.names == ["ann", "bob"]
    single = open_gallery(tmp_path / "flat/bob.png", model, "auto")
    assert single.names == ["bob"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat", "flat.index"]
    (found,) = search_faces([FaceIn(tmp_path / "flat/bob.png")], flat, model, 5)
    assert [match.name for match in found.matches] == ["bob", "ann"]
    assert found.matches[0].cosine == pytest.approx(1, abs=1e-6)


def test_the_index_is_kept_until_something_changes(
    run: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, made = opened(run), []

    def counting(*args: Any, **options: Any) -> dict[str, Any]:
        made.append(1)
        return extract(*args, **options)

    monkeypatch.setattr(_gallery, "extract", counting)

    def times(path: Path = gallery, model: Recognizer = model) -> int:
        made.clear()
        open_gallery(path, model, "auto")
        return len(made)

    assert [times(), times()] == [1, 0]
    capsys.readouterr()
    os.utime(gallery / "ann/0.png", ns=(1, 1))
    assert [times(), times()] == [1, 0]
    assert "known.index: made with another photos; it is made again" in capsys.readouterr().out
    (gallery / "ann/1.png").unlink()
    assert [times(), times()] == [1, 0]
    other = opened(write_run(gallery.parent / "other", seed=1))
    assert [times(model=other), times(model=other)] == [1, 0]
    assert "made with another model" in capsys.readouterr().out


def test_a_stopped_index_goes_on(run: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model = opened(run)
    with monkeypatch.context() as patch:
        patch.setattr(_gallery, "extract", stop)
        with pytest.raises(KeyboardInterrupt):
            open_gallery(gallery, model, "auto")
    with monkeypatch.context() as patch:
        patch.setattr(_gallery, "find_all_faces", stop)  # the faces are known already
        known = open_gallery(gallery, model, "auto")
    fresh = open_gallery(gallery, model, "auto", gallery.parent / "fresh")
    assert np.array_equal(known.vectors, fresh.vectors)
    assert known.photos == fresh.photos


def test_other_folders_and_damage_are_refused(
    run: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = gallery.parent / "mine"
    write_image(index / "holiday.png", crop(3))
    words = [str(gallery), str(gallery / "ann"), "--model", str(run), "--index"]
    assert main([*words, str(index)]) == 2
    assert "mine: is no index" in capsys.readouterr().err
    assert [path.name for path in index.iterdir()] == ["holiday.png"]
    assert main([*words, str(gallery.parent / "index")]) == 0
    for name, content in (("vectors.npy", b"no"), ("index.json", b"[1")):
        (gallery.parent / "index" / name).write_bytes(content)
        capsys.readouterr()
        assert main([*words, str(gallery.parent / "index")]) == 2
        assert "damaged; remove the folder" in capsys.readouterr().err
    empty = write_image(gallery.parent / "empty/nobody.png", np.zeros((90, 80, 3), np.uint8))
    assert main([str(empty.parent), str(gallery), "--model", str(run)]) == 2
    assert "none of 1 photos shows a face" in capsys.readouterr().err
