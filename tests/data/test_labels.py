"""Labels with gaps, labels out of range, renumbering, and index lists."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.faces import find_missing_path, open_faces, resolve_path
from data.fingerprint import fingerprint_of
from data.formats._record_bytes import pack_image, pack_record
from data.subset import choose, renumber
from recognition import checkpoint, experiment
from recognition.config import ConfigError
from recognition.parse import load_config
from tools import convert, stats, verify

SYNTHETIC = "synthetic:identities=3,images=2,size=24"
TINY = """
data: {train: SET, size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8}
head: {name: arcface}
optim: {lr: 0.05, batch_size: 4, epochs: 1}
scheduler: {name: constant}
run: {output: OUTPUT, device: cpu}
"""


def _records(folder: Path, labels: list[float], declared: int | None = None) -> Path:
    """A plain record file of six drawings with these labels."""
    folder.mkdir(exist_ok=True)
    faces = open_faces(SYNTHETIC)
    with open(folder / "train.rec", "wb") as rec, open(folder / "train.idx", "w") as idx:
        for key, label in enumerate(labels):
            idx.write(f"{key}\t{rec.tell()}\n")
            rec.write(pack_record(pack_image(faces.read(key), label, key)))
    if declared is not None:
        (folder / "property").write_text(f"{declared},24,24\n")
    return folder / "train.rec"


@pytest.mark.parametrize(
    ("labels", "declared", "told"),
    [
        ([100000, 100001, 100002, 100003, 100004, 100005], None, "6 of 100,006"),
        ([1, 2, 3, 4, 5, 6], None, "6 of 7"),
        ([0, 0, 1, 1, 2, 2], 1000, "3 of 1,000"),
    ],
)
def test_gaps_are_said_and_renumbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: list[float], declared: int, told: str
) -> None:
    path = _records(tmp_path, labels, declared)
    caplog.set_level(logging.INFO)
    faces = open_faces(path)
    assert f"{told} identities have images" in caplog.text
    caplog.clear()
    counted = open_faces(path, renumber=True)
    assert "identities have images" not in caplog.text
    assert counted.num_classes == len(set(labels))
    assert counted.labels.tolist() == [sorted(set(labels)).index(label) for label in labels]
    assert [counted.read(i) for i in range(6)] == [faces.read(i) for i in range(6)]


def test_a_property_with_too_few_people_is_refused_or_renumbered(tmp_path: Path) -> None:
    path = _records(tmp_path, [0, 1, 2, 3, 4, 9], 4)
    with pytest.raises(ValueError, match=r"has label 9.*declares 4.*data\.renumber=true"):
        open_faces(path)
    assert open_faces(path, renumber=True).num_classes == 6


@pytest.mark.parametrize(
    ("label", "told"), [(3e9, "label 3000000000"), (-1.0, "negative label -1")]
)
@pytest.mark.parametrize("renumbered", [False, True])
def test_an_impossible_label_is_one_line(
    tmp_path: Path, label: float, told: str, renumbered: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _records(tmp_path / "set", [0, 1, 2, 3, 4, label])
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("SET", str(path)).replace("OUTPUT", str(tmp_path / "run")))
    overrides = [f"data.renumber={str(renumbered).lower()}"]
    with pytest.raises(ConfigError, match=told.replace("negative ", "(?:negative )?")) as error:
        experiment.run(load_config(config, overrides), "tiny.yaml")
    assert "\n" not in str(error.value)
    assert verify.main([str(path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2  # the fault, and the counts


def test_verify_says_100000_gaps_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _records(tmp_path, [100000, 100001, 100002, 100003, 100004, 100004])
    assert verify.main([str(path), "--json"]) == 1
    found, counts, record = capsys.readouterr().out.splitlines()
    assert found == (
        f"gap: {path}: 5 of 100,005 identities have images; "
        "without: 0, 1, 2, 3, 4, 5, 6, 7, … 99999"
    )
    assert (counts, json.loads(record)) == ("1 gap", {"findings": 1, "gap": 1})


def test_people_of_joined_sets_do_not_mix(tmp_path: Path) -> None:
    path = _records(tmp_path, [0, 1, 2, 3, 4, -1])
    with pytest.raises(ValueError, match="negative label -1"):
        open_faces(f"concat:{SYNTHETIC};{path}")


def test_a_run_keeps_the_option_and_the_labels(tmp_path: Path) -> None:
    path = _records(tmp_path / "set", [7, 7, 9, 9, 30, 30])
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("SET", str(path)).replace("OUTPUT", str(tmp_path / "run")))
    folder = experiment.run(load_config(config, ["data.renumber=true"]), "tiny.yaml")
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    for written in (folder, newest):
        assert "renumber: true" in (written / "config.yaml").read_text()
    shared, (local,) = checkpoint.load(newest)
    assert shared["faces"]["original_labels"].tolist() == [7, 9, 30]
    assert {value.shape[0] for value in local["classifier"].values() if value.ndim == 2} == {3}
    with pytest.raises(ConfigError, match="not the set that .*it had 3 identities and has 31"):
        experiment.run(load_config(config), "tiny.yaml", resume=True)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1), st.booleans())
def test_an_index_list_gives_its_rows_and_labels(table: list[tuple[int, int]], wide: bool) -> None:
    faces = open_faces(SYNTHETIC)
    array = np.array(table, np.int32) if wide else np.array([row for row, _ in table], np.uint16)
    chosen = choose(faces, array, "list.npy")
    kept = [(row, label if wide else row // 2) for row, label in table]
    found = [
        (faces_row(chosen.describe(i)), label) for i, label in enumerate(chosen.labels.tolist())
    ]
    assert sorted(found) == sorted(kept)
    assert [row for row, _ in found] == sorted(row for row, _ in kept)
    assert chosen.num_classes == (max(label for _, label in table) + 1 if wide else 3)
    counted = renumber(chosen, "list.npy")
    assert counted.num_classes == len({label for _, label in kept})
    order = sorted({label for _, label in kept})
    assert [order[label] for label in counted.labels.tolist()] == chosen.labels.tolist()


def faces_row(described: str) -> int:
    _, _, identity, _, image = described.split()
    return 2 * int(identity) + int(image)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (np.zeros(0, np.int64), r"found int64 \(0,\), expected whole numbers"),
        (np.array([0.0, 1.0]), "found float64"),
        (np.array([True] * 6), "found bool"),
        (np.zeros((2, 3), np.int64), r"\(2, 3\)"),
        (np.array([0, 6]), "row 6, but the set has 6 images"),
        (np.array([-1, 3]), "row -1"),
        (np.array([[0, -1]]), "label -1"),
        (np.array([[0, 3_000_000_000]]), "label 3000000000"),
    ],
)
def test_a_wrong_index_list_is_refused(tmp_path: Path, table: np.ndarray, told: str) -> None:
    np.save(tmp_path / "list.npy", table)
    with pytest.raises(ValueError, match=rf"list\.npy: .*{told}"):
        open_faces(SYNTHETIC, subset=str(tmp_path / "list.npy"))


def test_index_lists_work_in_every_line_and_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "list.npy", np.array([[4, 1], [0, 0], [5, 1]]))
    line = f"subset:{tmp_path}/list.npy;{SYNTHETIC}"
    faces = open_faces(line)
    whole = open_faces(SYNTHETIC)
    assert [faces.read(i) for i in range(3)] == [whole.read(i) for i in (0, 4, 5)]
    assert fingerprint_of(faces) != fingerprint_of(whole)
    joined = open_faces(f"concat:{line};{SYNTHETIC}")
    assert joined.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert convert.main([line, str(tmp_path / "copy.rec")]) == 0
    assert open_faces(tmp_path / "copy.rec").labels.tolist() == [0, 1, 1]
    assert stats.main([line, "--json"]) == 0
    assert verify.main([line]) == 0
    capsys.readouterr()
    assert verify.main(["subset:list.npy"]) == 1
    assert "expected an index list and a set" in capsys.readouterr().out
    assert resolve_path("subset:a.npy;b.rec", "/root") == "subset:/root/a.npy;/root/b.rec"
    assert find_missing_path("subset:none.npy;synthetic:") == "none.npy"
