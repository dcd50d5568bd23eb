"""The soak tests in small: they pass, and they fail if something is wrong."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.formats.synthetic import open_set
from fastface.haar import FastFaceDetector
from recognition import checkpoint, experiment, logs
from recognition.models import tensor_files
from scripts.soak import data_fuzz, growth, haar, resume, run_folder


def test_broken_sets_are_refused_or_read_rightly(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_fuzz.main(["--count", "25", "--seed", "7"]) == 0
    assert "25 broken sets, 0 failures" in capsys.readouterr().out


class Crashing(ProcessPoolExecutor):
    """The process dies while it reads the third set."""

    reads = 0

    def submit(self, work: Any, *arguments: Any) -> Any:  # type: ignore[override]
        Crashing.reads += 1
        return super().submit(*((os.abort,) if Crashing.reads == 3 else (work, *arguments)))


def test_a_crash_of_the_reader_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_fuzz, "ProcessPoolExecutor", Crashing)
    assert data_fuzz.main(["--count", "5"]) == 1
    printed, told = capsys.readouterr()
    assert "set 2, lost: crashed" in printed
    assert told == "error: 1 of 5 broken sets failed\n"


def test_pictures_under_a_wrong_label_and_exceptions_are_named(tmp_path: Path) -> None:
    faces = open_set(data_fuzz.SOURCE)
    data_fuzz.make(faces, tmp_path)
    path = str(tmp_path / "rec/a.rec")
    assert data_fuzz.outcome(path, {}) == "wrong: image 0 of identity -1 under label 0"
    none: Any = None
    assert data_fuzz.outcome(none, {}) == "refused"
    assert data_fuzz.outcome(path, none).startswith("raised AttributeError")


def test_damaged_runs_resume_or_are_refused_and_wrong_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "plot_training", logs.plot_training)  # restored later
    expected = run_folder.make(tmp_path)
    killed, work = tmp_path / "killed", tmp_path / "work"

    def outcome(right: run_folder.Expected = expected) -> str:
        return run_folder.outcome(killed, work, right, "7/0")

    assert outcome() in run_folder.OUTCOMES
    other = run_folder.Expected("another hash", expected.models)
    monkeypatch.setattr(run_folder, "damage", lambda folder, rng: None)
    assert outcome() == "resumed"
    assert outcome(other).startswith("ended with other bits")

    def flip(folder: Path, rng: object) -> None:
        """A flipped bit in the middle of a model, among its numbers."""
        data = bytearray((killed / "model.pt").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "model.pt").write_bytes(data)

    monkeypatch.setattr(run_folder, "damage", flip)
    assert outcome() == "resumed"
    monkeypatch.setattr(checkpoint, "check_records", lambda file, size: None)
    monkeypatch.setattr(tensor_files, "check_records", lambda file, size: None)
    assert outcome() == "model.pt loads with other weights"

    def remove(folder: Path, rng: object) -> None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    monkeypatch.setattr(run_folder, "damage", remove)
    assert outcome() == "refused"
    monkeypatch.setattr(torch, "manual_seed", None)
    assert outcome().startswith("raised TypeError")
    assert "error" not in capsys.readouterr().err


def test_damaged_runs_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "plot_training", logs.plot_training)  # restored later
    here = ThreadPoolExecutor(1)  # another process would import everything once more
    monkeypatch.setattr(run_folder, "ProcessPoolExecutor", lambda *_, **__: here)
    assert run_folder.main(["--count", "3", "--seed", "7"]) == 0
    assert "3 damaged runs, 0 failures" in capsys.readouterr().out


def test_nothing_grows(capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--count", "600", "--steps", "16"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == ["decode", "sets", "train"]
    assert "'done': 15" in printed


def test_growth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    done = range(1000, 100_001, 1000)
    _, found = growth.growth([growth.Sample(n, 10**9 + 4400 * n, 10, 5) for n in done])
    assert found == ["memory grew by 220.0 MB, 4400 bytes each"]
    _, found = growth.growth([growth.Sample(n, 10**9 + 50 * n, 10, 5 + n // 60_000) for n in done])
    assert found == ["1 more threads"]

    kept: list[int] = []
    monkeypatch.setattr(growth, "decode_into", lambda *_: kept.append(os.dup(2)))
    _, found = growth.growth(growth.decode_all(80))
    assert found == ["22 more descriptors"]
    for descriptor in kept:
        os.close(descriptor)


def test_the_definition_is_fastfaces_and_a_drift_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = haar.losses_of(3000)
    average, signal, expected = losses[0], None, []
    for loss in losses[1:]:
        fall = haar.ALPHA * (average - loss)
        average += haar.ALPHA * (loss - average)
        signal = fall if signal is None else signal + haar.ALPHA * (fall - signal)
        expected.append(signal)
    np.testing.assert_allclose(haar.definition(losses).astype(float), expected, atol=1e-13)
    assert haar.main(["--steps", "5000"]) == 0

    class Drifting(FastFaceDetector):
        def update(self, loss: float) -> float | None:
            found = super().update(loss)
            return None if found is None else found * (1 + 1e-9)

    monkeypatch.setattr(haar, "FastFaceDetector", Drifting)
    assert haar.main(["--steps", "5000"]) == 1
    assert capsys.readouterr().err == "error: a detector drifted\n"


def test_rows_of_resumes_are_kept_and_a_wrong_one_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def killed(folder: Path, kind: str, draw: object) -> dict[str, object]:
        made.append(kind)
        return {"good": len(made) != 2}

    monkeypatch.setattr(resume, "killed", killed)
    for kills in (3, 3, 8):
        options = ["--folder", str(tmp_path), "--kills", str(kills), "--no-changes"]
        assert resume.main(options) == 1
        assert capsys.readouterr().err == f"error: 1 of {kills} rows are wrong\n"
    assert made == [*resume.KILLED, "plain"]


def test_what_a_changed_run_must_see() -> None:
    """Steps of 144 images from image 96 · 6 on: a rest of 48 or 96 images fills none."""
    expected = resume._to_be_seen(resume.EPOCH + 96, 144)
    assert [len(images) for images in expected] == [480, 96 + 288, *[432] * 10]
    assert set(expected[1]) < set(range(500))
