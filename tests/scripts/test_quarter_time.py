"""The quarter-time experiment: valid configs, textbook intervals, and no run done twice."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.parse import load_config
from scripts.experiments import quarter_report, quarter_time, view1_faces


def test_every_run_is_a_valid_config_with_a_different_name() -> None:
    runs = quarter_time.all_runs()
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        config = load_config(quarter_time.CONFIG, [f"optim.epochs={run.epochs}", *run.overrides])
        assert config.optim.batch_size == quarter_time.BATCH
        if (window := config.scheduler.options.get("window")) is not None:
            assert 2 * window < quarter_time.steps(run.data, run.epochs) / 2


def test_compared_rows_see_a_quarter_of_the_baselines_images() -> None:
    runs = quarter_time.all_runs()
    for part, data in (("a", "train"), ("b", "view1")):
        rows = {run.row: run for run in runs if run.part == part and run.seed == 0}
        wanted = {
            "baseline",
            "fastface",
            "fastface_published",
            "moving_haar",
            "multi_step",
            "polynomial",
            "cosine",
        }
        assert wanted | {"constant"} <= rows.keys()
        assert {run.epochs for name, run in rows.items() if name != "baseline"} == {
            rows["baseline"].epochs / 4
        }
        assert {run.data for run in rows.values()} == {data}


def row(name: str, right: np.ndarray) -> quarter_report.Row:
    return quarter_report.Row(name, [{"accuracy": 100 * seed.mean()} for seed in right], right)


def test_interval_of_one_seed_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(3)
    one = rng.random((1, 3000)) < 0.86
    other = np.where(rng.random((1, 3000)) < 0.9, one, rng.random((1, 3000)) < 0.7)
    found, low, high = quarter_report.difference(row("one", one), row("other", other))
    paired = 100 * (one[0].astype(float) - other[0])
    error = paired.std(ddof=1) / np.sqrt(len(paired))
    assert found == pytest.approx(paired.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert (high + low) / 2 == pytest.approx(found, abs=0.25 * error)


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    same = np.repeat(rng.random((1, 2000)) < 0.85, 3, axis=0)
    other = rng.random((3, 2000)) < np.array([[0.80], [0.85], [0.90]])
    _, low, high = quarter_report.difference(row("one", same), row("other", other))
    _, low_one, high_one = quarter_report.difference(row("one", same[:1]), row("other", other[1:2]))
    assert high - low > 1.5 * (high_one - low_one)


def test_correct_pairs_survive_the_file() -> None:
    right = np.random.default_rng(5).random(1003) < 0.5
    stored: dict[str, Any] = {
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "pairs": 1003,
    }
    assert np.array_equal(quarter_report.right_of(json.loads(json.dumps(stored))), right)


def test_pairs_alternate_and_none_is_lost(tmp_path: Path) -> None:
    genuine, impostors = [f"A\t{i}\t9" for i in range(3)], [f"A\t{i}\tB\t1" for i in range(3)]
    listed = tmp_path / "pairs.txt"
    listed.write_text("\n".join(["3", *genuine, *impostors]) + "\n")
    count, *lines = view1_faces.alternating(listed).splitlines()
    assert count == "3"
    assert lines[0::2] == genuine
    assert lines[1::2] == impostors
    assert view1_faces.people_in_pairs(listed) == {"A", "B"}
    listed.write_text("\n".join(["4", *genuine, *impostors]) + "\n")
    with pytest.raises(ValueError, match=r"says 4 pairs of each kind, lists 3 and 3"):
        view1_faces.alternating(listed)


def test_finished_runs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = quarter_time.all_runs()[:3]
    started: list[str] = []

    def finish(run: quarter_time.Run, faces: Path, folder: Path, results: Path) -> None:
        started.append(run.name)
        (results / f"{run.name}.json").write_text("{}")

    monkeypatch.setattr(quarter_time, "finish", finish)
    (tmp_path / f"{runs[1].name}.json").write_text("{}")
    for _ in range(2):
        quarter_time.work(runs, tmp_path, tmp_path / "runs", tmp_path)
    assert started == [runs[0].name, runs[2].name]
