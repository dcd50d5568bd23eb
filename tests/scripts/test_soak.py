"""The soak tests in small: they pass, and they fail if something is wrong."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.formats.synthetic import open_set
from fastface.haar import FastFaceDetector
from scripts.soak import data_fuzz, growth, haar


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
    assert "set 2, zip: crashed" in printed
    assert told == "error: 1 of 5 broken sets failed\n"


def test_pictures_under_a_wrong_label_and_exceptions_are_named(tmp_path: Path) -> None:
    faces = open_set(data_fuzz.SOURCE)
    data_fuzz.make(faces, tmp_path)
    path = str(tmp_path / "rec/a.rec")
    assert data_fuzz.outcome(path, {}) == "wrong: image 0 of identity -1 under label 0"
    none: Any = None
    assert data_fuzz.outcome(none, {}) == "refused"
    assert data_fuzz.outcome(path, none).startswith("raised AttributeError")


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
