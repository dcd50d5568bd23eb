"""tools.split: what is in the parts, for any folder, and that nothing is half-written."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.split import main, split_people, split_photos

NAMES = ("train", "test", "gallery", "probe")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Ten people with 1 … 10 images."""
    for person in range(1, 11):
        for number in range(person):
            path = tmp_path / "faces" / f"some one {person}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{person} {number}".encode())
    return tmp_path / "faces"


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}


def test_by_person(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(faces), "--test", "0.3"]) == 0
    assert "faces_split/test: " in capsys.readouterr().out
    train, test, gallery, probe = (_files(faces.parent / "faces_split" / name) for name in NAMES)
    people = [{name.split("/")[0] for name in part} for part in (train, test)]
    assert not people[0] & people[1]
    assert len(people[1]) == 3
    assert train | test == _files(faces)
    assert gallery | probe == test
    assert not gallery.keys() & probe.keys()
    assert Counter(name.split("/")[0] for name in gallery) == dict.fromkeys(people[1], 1)
    assert {name.split("/")[0] for name in probe} == people[1]


def test_by_photo(faces: Path) -> None:
    out = faces.parent / "parts"
    assert main([str(faces), "--test", "0.2", "--by", "photo", "--out", str(out)]) == 0
    train, test, gallery, probe = (_files(out / name) for name in NAMES)
    assert train | test == _files(faces)
    assert not train.keys() & test.keys()
    assert (gallery, probe) == (train, test)
    counts = Counter(name.split("/")[0] for name in test)
    # 0.2 of 2 … 10 images, rounded, and at least one
    expected = {2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 2, 9: 2, 10: 2}
    assert counts == {f"some one {person}": count for person, count in expected.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=20),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_every_image_is_in_one_set_and_every_probe_has_a_gallery_image(
    sizes: list[int], share: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for divide in (split_people, split_photos):
        try:
            parts = divide(labels, share, np.random.default_rng(seed))
        except ValueError:
            continue
        assert sorted([*parts["train"], *parts["test"]]) == list(range(len(labels)))
        assert len(parts["test"])
        assert len(np.unique(labels[parts["train"]])) >= 2
        assert set(labels[parts["probe"]]) <= set(labels[parts["gallery"]])
        assert not set(parts["probe"]) & set(parts["gallery"])
        again = divide(labels, share, np.random.default_rng(seed))
        assert all((parts[name] == again[name]).all() for name in NAMES)


def test_images_are_links_or_copies(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    assert main([str(faces), "--test", "0.3", "--out", str(faces.parent / "linked")]) == 0
    monkeypatch.setattr(os, "link", refuse)
    assert main([str(faces), "--test", "0.3", "--out", str(faces.parent / "copied")]) == 0
    linked, copied = (
        {
            path.relative_to(faces.parent / name): path
            for path in (faces.parent / name).rglob("*.jpg")
        }
        for name in ("linked", "copied")
    )
    assert {name: path.read_bytes() for name, path in linked.items()} == {
        name: path.read_bytes() for name, path in copied.items()
    }
    assert all(path.stat().st_nlink > 1 for path in linked.values())
    assert all(path.stat().st_nlink == 1 for path in copied.values())


def test_wrong_arguments_are_one_line_and_leave_nothing(
    faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (faces.parent / "there").mkdir()
    (faces.parent / "two" / "ann").mkdir(parents=True)
    (faces.parent / "two" / "ann" / "1.jpg").write_bytes(b"1")
    for arguments, told in (
        ([f"{faces}", "--test", "0.3", "--out", f"{faces.parent}/there"], "is there already"),
        ([f"{faces.parent}/nobody", "--test", "0.3"], "no such folder"),
        ([f"{faces}", "--test", "0.95"], "give another --test"),
        ([f"{faces.parent}/two", "--test", "0.2"], "--by photo"),
        ([f"{faces.parent}/two", "--test", "0.2", "--by", "photo"], "no person has two images"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    assert main([str(faces), "--test", "0.3"]) == 2
    assert sorted(path.name for path in faces.parent.iterdir()) == ["faces", "there", "two"]
