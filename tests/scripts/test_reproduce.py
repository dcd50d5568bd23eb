"""The tables of scripts.reproduce, from made-up run folders."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report.published import published_rows
from recognition.parse import load_config, to_yaml
from scripts import _curves, _published_runs, reproduce

ROOT = Path(__file__).parents[2]
ROW = "ms1mv3_r100_moving_haar"  # published: LFW 99.80, CFP-FP 98.53, IJB-C 96.41 at 1e-4


def make_run(
    folder: Path,
    row: str = ROW,
    *,
    overrides: Sequence[str] = (),
    epochs: float = 5.0,
    lfw: float = 99.71,
) -> Path:
    folder.mkdir(parents=True)
    config = load_config(ROOT / "configs" / f"{row}.yaml", overrides)
    (folder / "config.yaml").write_text(to_yaml(config))
    write_results(
        folder, {"lfw": {"accuracy": lfw, "accuracy_std": 0.3}, "CFP-FP": {"accuracy": 98.6}}
    )
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": epochs * step / 40,
            "loss": 46.0 - step,
            "learning_rate": 0.02,
            "seconds": 900.0 * step,
        }
        for step in range(10, 41, 10)
    ]
    lines.append({"step": 40, "epoch": epochs, "lfw/accuracy": lfw})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_results(folder: Path, figures: dict[str, dict[str, float | None]]) -> None:
    folder.mkdir(exist_ok=True)
    results = [
        {"name": name, "metrics": metrics, "settings": {}} for name, metrics in figures.items()
    ]
    (folder / "results.json").write_text(json.dumps({"published": None, "results": results}))


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_figures_of_a_run_stand_beside_the_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs" / "any_name")
    write_results(
        run / "ijbc",
        {"ijbc": {"nearest_tar@0.0001": 96.01, "rank1": 90.0}, "lfw": {"accuracy": 1.0}},
    )
    out = tmp_path / "out"
    assert (
        reproduce.main(
            ["--table", "moving_haar", "--runs", str(tmp_path / "runs"), "--out", str(out)]
        )
        == 0
    )
    text = (out / "tables.md").read_text()
    assert text in capsys.readouterr().out
    ours = next(line for line in text.splitlines() if str(run) in line)
    assert ours.startswith("|  | 99.71 (-0.09) | 98.60 (+0.07) |  |  | 96.01 (-0.40) |  | 10.00 |")
    published = next(line for line in text.splitlines() if f"`{ROW}`" in line)
    assert "99.80 | 98.53 | 98.12 | 95.03 | 96.41 | 94.56 | 9.05 | " in published
    assert re.search(r"9\.05 \| \d+\.\d GB \|", published)
    assert "not run" not in published
    assert "not run" in next(
        line for line in text.splitlines() if "webface4m_r100_moving_haar" in line
    )
    table = read_csv(out / "tables.csv")
    line = {(line["row"], line["benchmark"], line["metric"]): line for line in table}
    assert line[ROW, "cfp_fp", "accuracy"]["difference"] == "0.07"
    assert line[ROW, "ijbc", "nearest_tar@0.0001"]["ours"] == "96.01"
    assert line[ROW, "ijbc", "nearest_tar@1e-05"]["ours"] == ""
    assert line[ROW, "ijbc", "rank1"]["published"] == ""
    assert line[ROW, "lfw", "accuracy"]["notes"] == ""
    other = line["webface4m_r100_moving_haar", "lfw", "accuracy"]
    assert (other["ours"], other["notes"]) == ("", "not run")
    assert (
        other["command"]
        == "python train.py --config configs/webface4m_r100_moving_haar.yaml data.root=FOLDER"
    )
    assert 10e9 < int(other["planned_bytes"]) < 12e9
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_differences_from_the_recipe_are_noted(tmp_path: Path) -> None:
    make_run(
        tmp_path / "a", overrides=["optim.lr=0.1", "data.root=/faces", "run.output=x"], epochs=3.0
    )
    make_run(tmp_path / "deep" / "b")
    first, second = _published_runs.read_runs(tmp_path)
    assert first.notes == ("unfinished: epoch 3.0 of 5", "optim.lr 0.1, the config has 0.02")
    assert second.notes == ()
    assert second.hours == pytest.approx(10.0)
    (row, _) = _published_runs.read_rows("moving_haar", [first, second])
    assert row.runs == (first, second)
    text = reproduce.markdown({"moving_haar": [row]})
    assert f"- `{tmp_path / 'a'}`: optim.lr 0.1, the config has 0.02." in text


def test_folders_that_are_not_runs_of_a_row_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "own", overrides=["evaluate.published=null"])
    (make_run(tmp_path / "begun") / "results.json").unlink()
    assert _published_runs.read_runs(tmp_path) == []


def test_every_row_is_in_a_table_and_f2c_is_one() -> None:
    tables = _published_runs.choose_tables([])
    assert tables == ["fastface", "moving_haar", "arcface", "adaface", "f2c"]
    assert len(published_rows()) == 26
    for name in published_rows():
        command = _published_runs.start_command(ROOT / "configs" / f"{name}.yaml")
        assert f"train.py --config configs/{name}.yaml data.root=FOLDER" in command


def test_a_row_for_eight_processes_is_planned_so() -> None:
    rows = {row.name: row for row in _published_runs.read_rows("arcface", [])}
    assert rows["webface42m_vitb_pfc03"].ranks == 8
    shown = reproduce.markdown({"arcface": list(rows.values())})
    assert re.search(r"\d+\.\d GB on each of 8 \| not run", shown)
    assert "| 10.4 on 8 |" in reproduce.markdown({"arcface": [rows["ms1mv3_r100_arcface"]]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "fastfase"], "fastface"),
        (["--runs", "nowhere"], "--runs nowhere: no such folder"),
        (["--logs", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_mistakes_end_with_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [] if "--table" in arguments else ["--table", "moving_haar"]
    assert reproduce.main([*table, *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "results.json").write_text('{"results": [3]}')
    with pytest.raises(ValueError, match=r"run/results\.json: not a results\.json"):
        _published_runs.read_runs(tmp_path)
    text = (run / "config.yaml").read_text().replace(f"published: {ROW}", "published: ms1mv3_r1")
    (run / "config.yaml").write_text(text)
    with pytest.raises(
        ValueError, match=r"run/config\.yaml: evaluate\.published: found 'ms1mv3_r1'"
    ):
        _published_runs.read_runs(tmp_path)


def test_logs_in_both_forms_are_read_alike(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("step,epoch,loss,learning_rate\n20,0,46.5,0.02\n30,0,47.25,0.01\n")
    lines = ["Training: 2023-12-28 00:21:17,101-rank_id: 0\n"]
    for loss, rate, step in (("46.5000", "0.020000", 20), ("47.2500", "0.010000", 30)):
        speed = "Training: 2023-12-28 00:21:37,121-Speed 793.74 samples/sec   "
        state = f"Loss {loss}   LearningRate {rate}   Epoch: 0   Global Step: {step}   "
        lines.append(f"{speed}{state}Fp16 Grad Scale: 16384   Required: 54 hours\n")
    (tmp_path / "b.log").write_text("".join(lines))
    for curve in (
        _curves.read_log(tmp_path / "a.csv.gz"),
        _curves.read_log(tmp_path / "b.log"),
    ):
        assert curve.steps.tolist() == [20, 30]
        assert curve.losses.tolist() == [46.5, 47.25]
        assert curve.lrs is not None
        assert curve.lrs.tolist() == [0.02, 0.01]
    means = _curves.read_log(ROOT / "tests/fastface/fixtures/ms1mv3_r100_means.csv.gz")
    assert means.lrs is None
    for text in ("epoch,loss\n1,2\n", "step,loss\n1,x\n", ""):
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(ValueError, match=r"c\.csv: "):
            _curves.read_log(tmp_path / "c.csv")
    (tmp_path / "c.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"c\.csv\.gz: damaged"):
        _curves.read_log(tmp_path / "c.csv.gz")


def test_thinned_curves_keep_means_and_ends() -> None:
    steps = np.arange(1, 10_001)
    curve = _curves.thinned(_curves.Curve("x", steps, 2.0 * steps, 1.0 / steps), points=100)
    assert len(curve.steps) == 100
    assert curve.steps[-1] == 10_000
    np.testing.assert_allclose(curve.losses, 2 * (curve.steps - 49.5))
    assert curve.lrs is not None
    np.testing.assert_allclose(curve.lrs, 1 / curve.steps)
