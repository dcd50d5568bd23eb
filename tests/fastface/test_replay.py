"""The published MS1MV3 run through the schedulers, and the command that replays logs."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from fastface.__main__ import main
from fastface.replay import every_step, read_losses, replay
from fastface.schedulers import FastFaceLR, MovingHaarLR

FIXTURE = Path(__file__).parent / "fixtures/ms1mv3_r100_means.csv.gz"
LOG = Path(__file__).parents[2] / "../shared/data/published_runs/ms1mv3_r100.csv.gz"

# Step, factor and learning rate of every change in the log of the real run. The log has one row per
# 10 steps and six decimals.
PUBLISHED_CHANGES = [
    (54280, 0.5, 0.010000),
    (72870, 0.5, 0.005000),
    (94820, 0.5, 0.002500),
    (113110, 0.5, 0.001250),
    (135870, 0.5, 0.000625),
    (143870, 0.5, 0.000313),
    (151870, 0.5, 0.000156),
    (159870, 4.0, 0.000625),
    (175830, 0.5, 0.000313),
    (183830, 0.5, 0.000156),
    (191830, 0.5, 0.000078),
    (199830, 4.0, 0.000313),
]

needs_log = pytest.mark.skipif(not LOG.exists(), reason="the published run's full log is not here")


def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=0.02)


@pytest.mark.parametrize(
    "path", [FIXTURE, pytest.param(LOG, marks=needs_log)], ids=["means", "log"]
)
def test_moving_haar_changes_the_learning_rate_as_the_published_run_did(path: Path) -> None:
    changes = replay(read_losses(path), MovingHaarLR(optimizer(), 4000)).changes
    assert len(changes) == len(PUBLISHED_CHANGES)
    for change, (step, factor, rate) in zip(changes, PUBLISHED_CHANGES, strict=True):
        assert abs(change.step - step) <= 10
        assert change.factor == factor
        assert f"{change.lr:.6f}" == f"{rate:.6f}"


@needs_log
def test_every_learning_rate_of_the_published_log() -> None:
    with gzip.open(LOG, "rt") as file:
        next(file)
        logged = {int(step): rate for step, _, _, rate, _ in (line.split(",") for line in file)}
    trace = replay(read_losses(LOG), MovingHaarLR(optimizer(), 4000))
    different = [
        step
        for step, rate in zip(trace.steps, trace.lrs, strict=True)
        # Halves are rounded to even here and up in the log, which has 0.0003125 as 0.000313.
        if abs(rate - float(logged[step])) > 0.51e-6
    ]
    assert len(trace.steps) == len(logged) == 20231
    assert all(
        min(abs(step - change) for change, _, _ in PUBLISHED_CHANGES) <= 10 for step in different
    )


@needs_log
def test_fastface_with_the_published_constants_decays_six_times() -> None:
    changes = replay(read_losses(LOG), FastFaceLR(optimizer(), 202_325)).changes
    assert [change.step for change in changes] == [94273, 135930, 156072, 175312, 185429, 195546]


def test_steps_between_logged_ones_are_interpolated_linearly() -> None:
    rows = [(3, 5.0), (7, 1.0), (8, -2.0), (20, 4.0)]
    steps, losses = map(list, zip(*every_step(rows), strict=True))
    assert steps == list(range(3, 21))
    logged_steps, logged_losses = map(list, zip(*rows, strict=True))
    expected = np.interp(steps, logged_steps, logged_losses)
    np.testing.assert_allclose(losses, expected, rtol=1e-14)


def test_rows_that_are_not_finite_are_interpolated_over() -> None:
    with_nan = [(0, 2.0), (5, math.nan), (10, 1.0), (12, math.inf)]
    trace = replay(with_nan, MovingHaarLR(optimizer(), 2))
    assert trace.steps == [0, 10]
    assert trace.signals == replay([(0, 2.0), (10, 1.0)], MovingHaarLR(optimizer(), 2)).signals


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_command_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = write(tmp_path / "flat.csv", "epoch,step,loss\n0,0,2.0\n0,30,2.0\n")
    arguments = [
        "replay",
        str(flat),
        "--scheduler",
        "moving-haar",
        "--window",
        "4",
        "--patience-steps",
        "4",
        "--lr",
        "1",
    ]
    assert main([*arguments, "--restart-after", "never", "--threshold", "0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "changes": [
            {"step": 12, "factor": 0.5, "lr": 0.5},
            {"step": 17, "factor": 0.5, "lr": 0.25},
            {"step": 22, "factor": 0.5, "lr": 0.125},
            {"step": 27, "factor": 0.5, "lr": 0.0625},
        ]
    }
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "step 27: learning rate × 4 = 0.5"
    assert lines[-1] == "4 changes from step 0 to 30, last learning rate 0.5"


def test_command_draws_the_published_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "run.png"
    arguments = ["replay", str(FIXTURE), "--scheduler", "moving-haar", "--window", "4000"]
    assert main([*arguments, "--json", "--plot", str(picture)]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert [change["factor"] for change in changes] == [
        factor for _, factor, _ in PUBLISHED_CHANGES
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["run.png"]


def test_python_m_fastface_is_the_command() -> None:
    command = [sys.executable, "-m", "fastface", "replay", "no-such-file.csv"]
    printed = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert (printed.returncode, printed.stdout) == (2, "")
    assert printed.stderr.startswith("error: ")


def test_command_takes_fastface_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = write(tmp_path / "flat.csv.gz", "step,loss\n0,2.0\n2999,2.0\n")
    settings = [
        "--total-steps",
        "2000",
        "--patience-fraction",
        "0.1",
        "--max-decays",
        "2",
        "--factor",
        "0.1",
        "--json",
    ]
    assert main(["replay", str(flat), *settings]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    # D exists from step 1 on, and the patience is 200 steps.
    assert [change["step"] for change in changes] == [
        201,
        402,
    ]
    assert [change["lr"] for change in changes] == pytest.approx([0.002, 0.0002])
    assert main(["replay", str(flat), "--horizon", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["changes"]) == 8


@pytest.mark.parametrize(
    ("name", "text", "flags", "message"),
    [
        (
            "a.csv",
            "step,value\n1,2\n",
            [],
            "a.csv: the columns are ['step', 'value']: expected step and loss",
        ),
        (
            "a.csv",
            "step,loss\n1,2\n1,2\n",
            [],
            "a.csv, line 3: step 1 after 1: expected rising steps",
        ),
        (
            "a.csv",
            "step,loss\n1,two\n",
            [],
            "a.csv, line 2: step '1', loss 'two': expected a whole number",
        ),
        ("a.csv", "step,loss\n1\n", [], "a.csv, line 2: step '1', loss None"),
        ("a.csv", "step,loss\n", [], "a.csv holds no rows"),
        ("a.csv", "", [], "a.csv: the columns are []"),
        ("a.csv", "step,loss\n1,nan\n", [], "none of the losses is finite"),
        ("a.csv", "step,loss\n1,2\n", ["--scheduler", "moving-haar"], "needs --window N"),
        (
            "a.csv",
            "step,loss\n1,2\n",
            ["--window", "9"],
            "--scheduler fastface has no --window",
        ),
        (
            "a.csv",
            "step,loss\n1,2\n",
            ["--horizon", "--alpha", "0.1"],
            "--horizon has no --alpha",
        ),
        ("a.csv", "step,loss\n1,2\n", ["--horizon"], "total_steps is 1: expected at least 1000"),
        ("a.csv", "step,loss\n1,2\n", ["--lr", "0"], "--lr is 0.0: expected a number above 0"),
        ("a.csv", "step,loss\n1,2\n", ["--factor", "2"], "factor is 2.0: expected"),
        ("a.csv", "step,loss\n1,2\n", ["--plot", "/no/such/folder/x.png"], "/no/such/folder/x.png"),
    ],
)
def test_command_refuses_what_it_cannot_use(
    name: str,
    text: str,
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / name, text)
    assert main(["replay", str(path), *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


# Without a time in the gzip header, so that two processes that collect tests find the same names.
@pytest.mark.parametrize(
    "content",
    [None, b"no gzip", gzip.compress(b"step,loss\n1,2\n" * 999, mtime=0)[:-20]],
    ids=["missing", "no gzip", "cut off"],
)
def test_command_refuses_a_damaged_file(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "losses.csv.gz"
    if content is not None:
        path.write_bytes(content)
    assert main(["replay", str(path)]) == 2
    assert "losses.csv.gz" in capsys.readouterr().err
