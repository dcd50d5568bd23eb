"""The GPU benchmark in its tiny form on a CPU, and its parts against independent references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from data.types import Batch
from recognition import experiment
from scripts.bench import _gpu_cell, gpu
from scripts.bench._gpu_cell import TINY, Cell, attempt, config_of
from scripts.bench._textbook import Textbook

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU the benchmark takes minutes"
)


def test_it_runs_in_small_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.main(["--out", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(record["cells"]) == {cell.name for cell in gpu.IN_TINY_FORM}
    for row in record["cells"].values():
        assert row["times textbook"] == pytest.approx(row["images/s"] / row["textbook images/s"])
        assert 0 < row["classifier share"] < 1
        assert 0 <= row["data wait"] < 1
    assert {name: found["passed"] for name, found in record["checks"].items()} == {
        "lag": True,
        "cuda_tests": True,
        "resume": True,
    }
    assert all(record["checks"]["lag"][name]["changes"] > 3 for name in ("fastface", "moving_haar"))
    assert record == json.loads((tmp_path / "gpu.json").read_text())
    page = (tmp_path / "gpu.md").read_text()
    assert all(name in page for name in record["cells"])

    # Only what is missing is measured again.
    measured: list[str] = []

    def instead(cell: Cell, *_: Any) -> dict[str, Any]:
        measured.append(cell.name)
        return {"cell": cell.name, "images/s": 1.0}

    monkeypatch.setattr(gpu, "measure", instead)
    missing = gpu.IN_TINY_FORM[2].name
    del record["cells"][missing]
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    assert gpu.main(["--out", str(tmp_path)]) == 0
    assert measured == [missing]


def test_what_fails_is_told_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def instead(cell: Cell, *_: Any) -> dict[str, Any]:
        if cell == gpu.IN_TINY_FORM[0]:
            raise RuntimeError("broken\nkernel")
        return {"cell": cell.name, "images/s": 1.0}

    monkeypatch.setattr(gpu, "measure", instead)
    assert gpu.main(["--out", str(tmp_path), "--checks", "lag"]) == 1
    shown = capsys.readouterr()
    assert "broken kernel" in shown.err
    assert shown.err.count("\n") == 1
    cells = json.loads((tmp_path / "gpu.json").read_text())["cells"]
    assert len(cells) == len(gpu.IN_TINY_FORM)


def test_after_the_time_nothing_new_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path), "--minutes", "1e-9"]) == 0
    shown = capsys.readouterr().out
    assert all(cell.name in shown for cell in gpu.IN_TINY_FORM)
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not a file of this benchmark"),
        ("[]", "not a file of this benchmark"),
        ('{"machine": {"card": "another"}, "cells": {}, "checks": {}}', "another"),
    ],
)
def test_figures_of_another_machine_are_not_mixed(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpu.json").write_text(text)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "--out" in error


def test_out_of_memory_is_an_answer_and_other_errors_are_not() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert attempt(lambda: fail(torch.OutOfMemoryError("CUDA out of memory"))) is None
    assert attempt(lambda: fail(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"))) is None
    with pytest.raises(RuntimeError, match="shapes"):
        attempt(lambda: fail(RuntimeError("shapes differ")))


def test_a_cell_that_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with gpu.record_file(TINY.size) as records:
        cell = gpu.IN_TINY_FORM[0]
        monkeypatch.setattr(_gpu_cell, "Textbook", too_large)
        row = _gpu_cell.measure(cell, TINY, records)
        assert row["textbook images/s"] == "out of memory"
        assert row["in turn"] is False
        assert row["images/s"] > 0
        monkeypatch.setattr(experiment, "build_parts", too_large)
        row = _gpu_cell.measure(cell, TINY, records)
        assert row["images/s"] == row["textbook images/s"] == "out of memory"
        assert row["times textbook"] == row["classifier share"] == ""


def test_the_default_cells_are_among_all() -> None:
    every = list(gpu.all_cells())
    assert set(gpu.DEFAULT) < set(every)
    assert len(set(every)) == len(every)
    for cell in every:  # each makes a valid config
        assert config_of(cell, _gpu_cell.FULL).run.compile == cell.compiled


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_textbook_computes_arcface(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = config_of(Cell("R50", 93_431, "fp32"), TINY)
    textbook = Textbook(config, 30, torch.device("cpu"), sample_rate=rate)
    textbook.weight.data.normal_()
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(30, (12,))
    network = textbook.net.train()
    embeddings: list[torch.Tensor] = []
    network.register_forward_hook(lambda *call: embeddings.append(call[2].detach().double()))
    sampled: list[torch.Tensor] = []
    if rate < 1:
        draw = textbook._sample

        def remember(given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            weight, places = draw(given)
            sampled.extend((weight.detach().double(), places))
            return weight, places

        monkeypatch.setattr(textbook, "_sample", remember)
    weight = textbook.weight.detach().double()
    loss = textbook.step(Batch(images, labels))

    centers, places = sampled if sampled else (weight, labels)
    assert len(centers) == (15 if rate < 1 else 30)
    assert torch.equal(centers[places], weight[labels])
    cosines = F.normalize(embeddings[0]) @ F.normalize(centers).T
    rows = torch.arange(12)
    cosines[rows, places] = torch.cos(torch.acos(cosines[rows, places]) + 0.5)
    assert loss == pytest.approx(float(F.cross_entropy(64 * cosines, places)), rel=1e-4)
