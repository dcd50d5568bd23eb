"""tools.clean: its files, what it keeps, and how it goes on."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.faces import open_faces
from data.pairs.verification_bin import write_bin
from eval import extract
from eval.cleaning.cut import Cut
from eval.cleaning.merge import Merges
from eval.cleaning.split import Splits
from recognition.models.model import Model
from tests.tools.faces_and_models import crop, write_image, write_run
from tools import clean
from tools._clean_page import spread
from tools._clean_set import Chosen, connected, open_test
from tools._clean_show import merges_result, splits_result

CUT = Cut(-0.5, 0.1, 0.9, 0.8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def picture(person: int, number: int) -> np.ndarray:
    """A picture that is a little like the other ones of the person."""
    mixed = 0.7 * crop(person) + 0.3 * crop(1000 + 50 * person + number)
    return np.asarray(mixed, np.uint8)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """24 people with 4 pictures each. Row 5 repeats row 4, row 9 row 0; row 17 is broken."""
    folder = tmp_path / "set"
    for person in range(24):
        for number in range(4):
            name = "<b>zoe" if person == 23 else f"p{person:02d}"
            write_image(folder / name / f"{number}.png", picture(person, number))
    files = sorted(folder.rglob("*.png"), key=lambda path: (path.parent.name[0] != "<", str(path)))
    assert [path.parent.name for path in files[:5]] == ["<b>zoe"] * 4 + ["p00"]
    files[5].write_bytes(files[4].read_bytes())
    files[9].write_bytes(files[0].read_bytes())
    files[17].write_bytes(files[17].read_bytes()[:60])
    return folder


def cleaned(method: str, faces: Path | str, run: Path, out: Path, *words: str) -> int:
    options = ["--model", str(run), "--out", str(out), *words]
    return clean.main([method, str(faces), *options])


def content(folder: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_duplicates_from_set_to_subset(
    run: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = content(people), tmp_path / "out"
    assert cleaned("duplicates", people, run, out, "--near", "0.99999", "--json") == 0
    printed = capsys.readouterr().out
    record = json.loads(printed.splitlines()[-1])
    assert content(people) == before
    assert (record["suspects"], record["equal"], record["across"], record["bad"]) == (2, 2, 1, 1)
    subset = np.load(out / "duplicates/subset.npy")
    assert sorted(set(range(96)) - set(subset.tolist())) in ([0, 5, 17], [5, 9, 17])
    faces = open_faces(people, subset=str(out / "duplicates/subset.npy"))
    assert len(faces) == 93 == record["kept"]
    with open(out / "duplicates/suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["row"], row["repeats_row"]) for row in rows} <= {
        *(("5", "4"), ("0", "9"), ("9", "0"))
    }
    assert {row["why"] for row in rows} == {"equal bytes"}
    assert rows[0]["image"].endswith(".png")
    page = (out / "duplicates/suspects.html").read_text()
    assert page.index("This page shows faces") < page.index("data:image/")
    assert page.count("data:image/jpeg") == 2 * 2
    assert page.count("data:image/png") == 1
    assert "1 bad image, left out" in page
    assert "<b>zoe" not in page
    assert "&lt;b&gt;zoe" in page
    assert set(re.findall(r"(?:src|href)='(.{11})", page)) == {"data:image/"}
    assert "p03/1.png" in printed
    assert not list(out.glob(".chosen.*"))


def test_the_vectors_are_kept_until_something_changes(
    run: Path,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[int] = []
    embed = Model.forward

    def counting(model: Model, images: torch.Tensor) -> torch.Tensor:
        made.append(len(images))
        result: torch.Tensor = embed(model, images)
        return result

    monkeypatch.setattr(Model, "forward", counting)
    out = tmp_path / "out"
    assert cleaned("noise", people, run, out, "--no-mirror") == 0
    assert sum(made) == 96
    first = (out / "vectors/vectors.npy").read_bytes()
    assert cleaned("split", people, run, out, "--no-mirror") == 0
    assert cleaned("merge", people, run, out, "--no-mirror") == 0
    assert (
        cleaned("prune", people, run, out, "--no-mirror", "--by", "random", "--at-least", "2") == 0
    )
    assert sum(made) == 96
    assert (out / "vectors/vectors.npy").read_bytes() == first
    assert len(np.load(out / "prune/subset.npy")) == 71
    (people / "p00/0.png").unlink()
    capsys.readouterr()
    assert cleaned("noise", people, run, out, "--no-mirror") == 0
    assert "made with another set; it is made again" in capsys.readouterr().out
    assert sum(made) == 96 + 95


def test_an_embedding_that_was_stopped_goes_on(
    run: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad image was met before the stop. The vectors are those of a run without a stop."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setattr(extract, "BLOCK", 16)
    assert cleaned("noise", people, run, whole) == 0
    embed, calls = Model.forward, [0]

    def stopping(model: Model, images: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 7:
            raise KeyboardInterrupt
        result: torch.Tensor = embed(model, images)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", stopping)
        assert cleaned("noise", people, run, out) == 130
    position = json.loads((out / "vectors/vectors.npy.position.json").read_text())
    assert position["done"] == 48
    assert not (out / "noise").exists()
    assert cleaned("noise", people, run, out) == 0
    for name in ("vectors.npy", "digests.npy", "bad.txt"):
        assert (out / "vectors" / name).read_bytes() == (whole / "vectors" / name).read_bytes()
    assert (out / "vectors/bad.txt").read_text().startswith("17\n")
    subsets = [np.load(folder / "noise/subset.npy") for folder in (whole, out)]
    assert subsets[0].tolist() == subsets[1].tolist()


def test_a_subset_names_rows_of_the_whole_set(run: Path, people: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", np.arange(95, 15, -1)
    np.save(tmp_path / "rows.npy", rows)
    words = ("--near", "0.99999", "--subset", str(tmp_path / "rows.npy"))
    assert cleaned("duplicates", people, run, out, *words) == 0
    assert np.load(out / "duplicates/subset.npy").tolist() == [16, *range(18, 96)]
    table = np.stack([rows, 3 + rows // 10], 1)
    np.save(tmp_path / "rows.npy", table)
    assert cleaned("duplicates", people, run, out, *words) == 0
    found = np.load(out / "duplicates/subset.npy")
    assert found[:, 0].tolist() == [16, *range(18, 96)]
    assert found[:, 1].tolist() == [3 + row // 10 for row in found[:, 0]]


def test_overlap_with_every_kind_of_test_set(run: Path, people: Path, tmp_path: Path) -> None:
    """People p00 to p04 are in the test set, with other pictures."""
    test = tmp_path / "test"
    numbers = [*range(5), *range(100, 125)]
    for person in numbers:
        for number in (7, 8):
            write_image(test / f"t{person:03d}/{number}.png", picture(person, number))
    encoded = [file.read_bytes() for file in sorted(test.rglob("*.png"))]
    write_bin(tmp_path / "test.bin", [*encoded, *encoded[:2]], np.ones(31, bool))
    lines = [f"t{person:03d}/7.png t{person:03d}/8.png 1\n" for person in numbers]
    (tmp_path / "pairs.txt").write_text("".join(lines))
    accused = []
    for words in (
        ("--test", str(test)),
        ("--test", str(tmp_path / "test.bin")),
        ("--test", str(tmp_path / "pairs.txt"), "--images", str(test)),
    ):
        out = tmp_path / "out"
        assert cleaned("overlap", people, run, out, *words, "--expected-false", "5") == 0
        with open(out / "overlap/suspects.csv", newline="") as file:
            accused.append([row["identity"] for row in csv.DictReader(file)])
        subset = np.load(out / "overlap/subset.npy")
        gone = {
            str(label)
            for label in range(24)
            if not set(range(4 * label, 4 * label + 4)) & set(subset.tolist())
        }
        assert gone == {identity.split()[0] for identity in accused[-1]}
    assert accused[0] == accused[1] == accused[2]
    assert set(accused[0]) & {f"{1 + person} (p{person:02d})" for person in range(5)}
    assert len(open_test(str(tmp_path / "test.bin"), None)) == 62
    assert open_test(str(tmp_path / "test.bin"), None).num_classes == 30


def chosen_of(labels: np.ndarray, identities: np.ndarray, faces: Any) -> Chosen:
    rows = np.arange(len(labels))
    return Chosen(faces, rows, labels, identities, False, np.empty(0), np.empty(0), [])


def test_new_labels_of_split_and_merged_identities() -> None:
    faces = open_faces("synthetic:identities=5,images=4,size=32", check=False)
    work = chosen_of(faces.labels, np.array([0, 2, 5, 7, 9]), faces)
    second = np.zeros(20, bool)
    second[[5, 7, 16]] = True
    apart = np.linspace(0.1, 0.9, 5)
    splits = Splits(np.array([4, 1]), second, np.arange(5), apart, apart, CUT)
    result = splits_result(work, splits, np.zeros(20), 10)
    # Labels 0, 2, 5, 7, 9 become 0…4; the new people come behind them, in the order found.
    expected = faces.labels.copy()
    expected[16], expected[[5, 7]] = 5, 6
    assert result.subset.tolist() == np.stack([np.arange(20), expected], 1).tolist()
    assert [(row[0], row[-1]) for row in result.rows] == [(16, 5), (5, 6), (7, 6)]

    target = {1: 1, 3: 1, 4: 1}
    merges = Merges(np.array([[1, 3], [3, 4]]), np.array([0.9, 0.8]), target, apart, apart, CUT)
    result = merges_result(work, merges, np.zeros(20), 1)
    expected = np.array([0, 1, 2, 1, 1])[faces.labels]
    assert result.subset[:, 1].tolist() == expected.tolist()
    assert [row[0] for row in result.rows] == ["2", "7"]
    assert result.record["merged"] == 2
    assert len(result.suspects) == 1


def test_connected_groups() -> None:
    labels = connected(7, np.array([0, 4, 1]), np.array([3, 0, 6]))
    groups = {tuple(np.flatnonzero(labels == label).tolist()) for label in labels}
    assert groups == {(0, 3, 4), (1, 6), (2,), (5,)}


def test_the_page_shows_some_from_the_first_to_the_last() -> None:
    assert spread(0, 5) == []
    assert spread(3, 5) == [0, 1, 2]
    found = spread(1000, 5)
    assert (len(found), found[0], found[-1]) == (5, 0, 999)


def broken_bytes(folder: Path) -> str:
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")
    return str(folder)


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (str, ["--subset", "missing.npy"], "missing.npy"),
        (lambda folder: str(folder / "none"), [], "none"),
        (broken_bytes, [], "none of its images can be decoded"),
        (str, ["--shown", "0"], "--shown"),
    ],
)
def test_wrong_arguments(
    make: Callable[[Path], str],
    words: list[str],
    message: str,
    run: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code = cleaned("duplicates", make(people), run, tmp_path / "out", *words)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out/duplicates").exists()


def test_another_folder_is_not_overwritten(
    run: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out/vectors").mkdir(parents=True)
    (tmp_path / "out/vectors/mine.txt").write_text("mine")
    assert cleaned("noise", people, run, tmp_path / "out") == 2
    assert "is no index" in capsys.readouterr().err
    assert (tmp_path / "out/vectors/mine.txt").read_text() == "mine"
