"""The quarter-time experiment: valid configs, rates chosen on kept-out pairs, no run done twice."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.parse import load_config
from scripts.experiments import quarter_report, quarter_time, view1_faces
from scripts.experiments._judge import packed, right_of
from scripts.experiments.quarter_time import RATES, Run, chosen_rate, known_runs, tuning_rates


def _record(run: Run, view1: float, lfw: float) -> dict[str, Any]:
    """A finished run with that accuracy in percent on both lists."""
    right = np.random.default_rng([run.seed, run.epochs, *run.row.encode()]).random(200) < lfw / 100
    packed = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {
        "row": run.row,
        "rate": run.rate,
        "seed": run.seed,
        "epochs": run.epochs,
        "steps": 374 * run.epochs,
        "images": 5984 * run.epochs,
        "multiply_adds": 10**12,
        "cpu_seconds": 130.0,
        "steady_cpu_seconds": 100.0,
        "resumed": False,
        "final_loss": 3.0,
        "decays": None,
        "view1": {"accuracy": view1},
        "lfw": {"accuracy": 100 * right.mean(), "pairs": 200, "right": packed},
        "curve": {"step": [1, 2], "loss": [9.0, 8.0], "learning_rate": [0.1, 0.01]},
    }


def _finish(rows: Sequence[str], best: float = 0.05) -> list[dict[str, Any]]:
    """Everything of these rows is finished; `best` is the best rate of the grid."""
    finished: list[dict[str, Any]] = []
    while True:
        done = {(run["row"], run["rate"], run["seed"]) for run in finished}
        left = [run for run in known_runs(finished) if run.row in rows]
        left = [run for run in left if (run.row, run.rate, run.seed) not in done]
        if not left:
            return finished
        finished += [_record(run, 80 - abs(run.rate - best), 80 + run.seed) for run in left]


def test_every_run_is_a_valid_config_with_a_different_name() -> None:
    finished = _finish([*quarter_time.schedules()])
    runs = [*known_runs(finished)]
    assert len({run.name for run in runs}) == len(runs) == len(finished)
    for run in {run.row: run for run in runs}.values():
        options = [f"optim.epochs={run.epochs}", f"optim.lr={run.rate}", *run.overrides]
        config = load_config(quarter_time.CONFIG, options)
        assert config.optim.batch_size == quarter_time.BATCH
        assert config.scheduler.options["warmup_steps"] == quarter_time.WARMUP


def test_every_row_has_the_same_grid_and_a_quarter_of_the_baselines_images() -> None:
    finished = _finish([*quarter_time.schedules()])
    rows = {run["row"] for run in finished}
    assert {"fastface", "fastface_published", "moving_haar", "linear", "trapezoid"} <= rows
    assert {"multi_step", "polynomial", "cosine", "constant", "baseline", "doubled"} <= rows
    for row in rows:
        own = [run for run in finished if run["row"] == row]
        rates = {run["rate"] for run in own}
        assert rates == ({0.05} if row == "doubled" else set(RATES))
        seeds = [run["seed"] for run in own if run["rate"] == 0.05]
        assert sorted(seeds) == [*range(3 if row == "doubled" else 5)]
        assert {run["epochs"] for run in own} == {{"baseline": 48, "doubled": 96}.get(row, 12)}


def test_the_grid_grows_by_one_rate_at_its_end() -> None:
    low, middle, high = sorted(RATES)
    assert tuning_rates({middle: 80.0}) == RATES
    assert chosen_rate({low: 79.0, middle: 80.0}) is None
    assert chosen_rate({low: 79.0, middle: 80.0, high: 79.5}) == middle
    at_the_end = {low: 79.0, middle: 80.0, high: 80.5}
    assert tuning_rates(at_the_end) == (*RATES, 2 * high)
    assert chosen_rate(at_the_end) is None
    assert chosen_rate({**at_the_end, 2 * high: 80.4}) == high
    assert chosen_rate({**at_the_end, 2 * high: 80.6}) == 2 * high
    assert tuning_rates({low: 81.0, middle: 80.0, high: 79.0}) == (*RATES, low / 2)


def test_more_seeds_follow_the_choice() -> None:
    tuning = [run for run in _finish(["fastface"]) if run["seed"] == 0]
    known = [run for run in known_runs(tuning[:-1]) if run.row == "fastface"]
    assert [run.seed for run in known] == [0, 0, 0]
    known = [run for run in known_runs(tuning) if run.row == "fastface"]
    assert [(run.rate, run.seed) for run in known[3:]] == [(0.05, seed) for seed in (1, 2, 3, 4)]


def test_correct_pairs_survive_the_file() -> None:
    right = np.random.default_rng(5).random(1003) < 0.5
    stored = json.loads(json.dumps(packed(right)))
    assert stored["pairs"] == 1003
    assert np.array_equal(right_of(stored), right)


def test_pairs_alternate_and_none_is_lost(tmp_path: Path) -> None:
    genuine, impostors = [f"A\t{i}\t9" for i in range(3)], [f"A\t{i}\tB\t1" for i in range(3)]
    (tmp_path / "protocol").mkdir()
    for name in ("pairsDevTrain", "pairsDevTest"):
        listed = tmp_path / f"protocol/{name}.txt"
        listed.write_text("\n".join(["3", *genuine, *impostors]) + "\n")
    count, *lines = quarter_time.view1_pairs(tmp_path).splitlines()
    assert count == "6"
    assert lines[0::2] == 2 * genuine
    assert lines[1::2] == 2 * impostors
    assert view1_faces.people_in_pairs(listed) == {"A", "B"}
    listed.write_text("\n".join(["4", *genuine, *impostors]) + "\n")
    with pytest.raises(ValueError, match=r"says 4 pairs of each kind, lists 3 and 3"):
        view1_faces.alternating(listed)


def test_steady_time_leaves_out_the_start(tmp_path: Path) -> None:
    run = quarter_time.run_of("fastface", 0.05, 0)
    lines = [
        {"step": step, "images": 16 * step, "loss": 1.0, "seconds": 9.0, "cpu_seconds": cpu}
        for step, cpu in ((20, 90.0), (40, 2.0), (60, 2.2), (80, 1.8), (100, 2.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = quarter_time.cost(run, tmp_path)
    assert cost["steady_cpu_seconds"] == 10.0
    assert (cost["steps"], cost["images"]) == (100, 1600)
    assert cost["multiply_adds"] / 1600 == pytest.approx(29e6, rel=0.3)


def test_finished_runs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [*known_runs([])][:3]
    started: list[str] = []

    def finish(run: Run, faces: Path, folder: Path, results: Path) -> None:
        started.append(run.name)
        (results / f"{run.name}.json").write_text("{}")

    monkeypatch.setattr(quarter_time, "finish", finish)
    (tmp_path / f"{runs[1].name}.json").write_text("{}")
    while quarter_time.work(runs, tmp_path, tmp_path / "runs", tmp_path):
        assert len(started) < 3
    assert started == [runs[0].name, runs[2].name]


def test_the_report_shows_chosen_rows_and_says_what_is_missing(tmp_path: Path) -> None:
    finished = _finish(["fastface", "baseline"])
    finished += [run for run in _finish(["linear"]) if run["rate"] != 0.1 and run["seed"] == 0]
    for place, run in enumerate(finished):
        (tmp_path / f"{place}.json").write_text(json.dumps(run))
    quarter_report.run(results=tmp_path, images=tmp_path)
    tuning, tested = (tmp_path / "table.md").read_text().split("**Test")
    assert "| linear to zero | 79.97 | 80.00 | not run |" in tuning
    assert "| cosine | not run | not run | not run |" in tuning
    assert "| FastFace, `for_horizon` | 79.97 | **80.00** | 79.95 |" in tuning
    assert "linear to zero" not in tested
    assert "5 of 5" in tested
    header, line = (tmp_path / "differences.csv").read_text().splitlines()
    assert header == "row,other,value,low,high"
    value, low, high = map(float, line.split(",")[2:])
    assert low < value < high
    assert (tmp_path / "quarter_time_accuracy.png").exists()
    assert (tmp_path / "quarter_time_curves.png").exists()
