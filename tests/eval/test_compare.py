"""`python -m eval compare`: figures, sentences, rows with several seeds, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from eval.__main__ import main
from eval.benchmarks.pairs import score_pairs
from eval.compare import sentence
from eval.metrics import verification as metrics
from eval.metrics.paired import Interval
from eval.report.result import Result
from eval.report.scores import FILE, read_scores
from eval.report.write import write_report

PAIRS = 200
DIGEST = "0123456789abcdef" * 2


def _result(seed: int, noise: float, *, name: str = "people", digest: str = DIGEST) -> Result:
    """Pairs of 2-D vectors: those of one person are near each other, plus noise."""
    rng = np.random.default_rng(seed)
    same = np.arange(PAIRS) % 2 == 0
    angles = np.where(same, 0.2, 1.5) + rng.normal(0, noise, PAIRS)
    vectors = np.concatenate(
        [np.tile([1.0, 0.0], (PAIRS, 1)), np.stack([np.cos(angles), np.sin(angles)], 1)]
    )
    rows = np.arange(PAIRS)
    return score_pairs(name, vectors, rows, rows + PAIRS, same, digest=digest)


def _folder(path: Path, *results: Result) -> str:
    write_report(results, path)
    return str(path)


def test_scores_survive_the_file_and_go_with_the_results(tmp_path: Path) -> None:
    result = _result(0, 0.5)
    folder = _folder(tmp_path / "a", result, _result(1, 0.5, name="a/b ü"))
    read = read_scores(folder)
    assert list(read) == ["people", "a/b ü"]
    scores = read["people"]
    assert np.array_equal(scores.distances, result.scores["people"].distances)
    assert np.array_equal(scores.same, result.scores["people"].same)
    assert scores.digest == DIGEST
    share = 100 * metrics.right_decisions(scores.distances, scores.same).mean()
    assert share == pytest.approx(result.metrics["accuracy"])

    # An evaluation without scores leaves none of an earlier one.
    _folder(tmp_path / "a", _result(0, 0.5, digest=""))
    with pytest.raises(FileNotFoundError, match="results of an earlier version"):
        read_scores(folder)


def test_the_command_compares_rows_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = _folder(tmp_path / "a", _result(0, 0.3), _result(0, 0.3, name="only here"))
    b = [_folder(tmp_path / f"b{seed}", _result(seed, 0.8)) for seed in (1, 2, 3)]
    assert main(["compare", a, f"noisy={','.join(b)}", "--far", "0.05", "0.001", "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert list(record) == ["people"]
    assert "Not in every folder, so not compared: only here." in text
    rows = record["people"]["rows"]
    assert rows["noisy"]["seeds"] == 3
    means = np.mean([_result(seed, 0.8).metrics["accuracy"] for seed in (1, 2, 3)])
    assert rows["noisy"]["accuracy"] == pytest.approx(means)
    assert rows[a]["AUC"] == pytest.approx(_result(0, 0.3).metrics["auc"])
    found = {one["figure"]: one for one in record["people"]["differences"]}
    assert list(found) == ["accuracy", "AUC", "TAR at FAR 0.05"]
    assert found["accuracy"]["points"] == pytest.approx(means - rows[a]["accuracy"])
    assert found["accuracy"]["low"] < found["accuracy"]["points"] < found["accuracy"]["high"] < 0
    assert any(line.startswith(f"- accuracy: noisy is worse than {a} by ") for line in text)
    assert any("No TAR at FAR 0.001: the list has too few impostor pairs" in line for line in text)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.4, -0.2, 1.0), "better than A by 0.40 points, 95 % interval −0.20 to 1.00: not shown"),
        ((-1.0, -1.5, -0.6), "worse than A by 1.00 points, 95 % interval 0.60 to 1.50: shown"),
        ((-0.5, -1.5, 0.2), "worse than A by 0.50 points, 95 % interval −0.20 to 1.50: not shown"),
    ],
)
def test_the_sentence_says_how_much_and_whether_it_is_shown(
    interval: tuple[float, float, float], words: str
) -> None:
    assert sentence("B", "A", Interval(*interval)) == f"B is {words}"


def test_the_sentence_of_equal_models() -> None:
    assert sentence("B", "A", Interval(0, 0, 0)) == "B and A are equal in every resample"


def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = _folder(tmp_path / "a", _result(0, 0.5))
    other = _folder(tmp_path / "other", _result(0, 0.5, digest=DIGEST[::-1]))
    alone = _folder(tmp_path / "alone", _result(0, 0.5, name="alone"))
    (tmp_path / "empty").mkdir()
    cases = [
        ([], "give two or more rows"),
        ([a], "give two or more rows"),
        ([a, a], "different names"),
        ([a, other], "has other pairs"),
        ([a, alone], "no list of pairs is in every folder; found alone, people"),
        ([a, f"b={a}", "--lists", "lfw"], "no scores of lfw; it has people"),
        ([a, f"b={a},{tmp_path}/none"], "none: no such folder"),
        ([a, f"b={a},"], "no such folder"),
        ([a, f"{tmp_path}/empty"], f"no {FILE} in it"),
        ([a, f"b={a}", "--far", "2"], "expected more than 0 and at most 1"),
    ]
    for words, expected in cases:
        try:
            code = main(["compare", *words])
        except SystemExit as stopped:  # argparse
            code = int(stopped.code or 0)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2, words
        assert expected in error, error


def test_changed_files_are_refused(tmp_path: Path) -> None:
    folder = Path(_folder(tmp_path / "a", _result(0, 0.5)))
    good = dict(np.load(folder / FILE))
    changes = {
        "people.distances": [good["people.distances"][1:], np.full(PAIRS, np.nan, np.float32)],
        "people.same": [good["people.same"].astype(np.int8)],
        "people.digest": [good["people.digest"][:8]],
    }
    for key, arrays in changes.items():
        for array in arrays:
            file = io.BytesIO()
            np.savez(file, **{**good, key: array})
            (folder / FILE).write_bytes(file.getvalue())
            with pytest.raises(ValueError, match=r"scores of people"):
                read_scores(folder)
    (folder / FILE).write_bytes(b"PK\3\4 nothing")
    with pytest.raises(ValueError, match=FILE):
        read_scores(folder)
