"""The benchmarks that need no separate process, in small: they run, and their ratios agree."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts.bench import loader, pool, sampling, scheduler, trainer


def record_of(main: Any, arguments: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*arguments.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_loader(capsys: pytest.CaptureFixture[str]) -> None:
    small = "--data synthetic:identities=8,images=8,size=32 --size 32"
    found = record_of(loader.main, f"{small} --rounds 1 --images 64", capsys)
    assert found["images"] == 64
    for above, below in loader.RATIOS:
        assert found[f"{above}_to_{below}"] == pytest.approx(found[above] / found[below])
    held = record_of(loader.main, f"{small} --memory 2", capsys)
    assert len(held["mb_after_epochs"]) == 2
    assert held["descriptors_after_100_openings"] == held["descriptors"]


def test_pool(capsys: pytest.CaptureFixture[str]) -> None:
    small = "--identities 500 --size 50 --samples 20 --embedding 8 --updates 9 --threads 1"
    found = record_of(pool.main, small, capsys)
    assert 0 < found["tenth_ms"] <= found["median_ms"]


def test_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    small = "--identities 500 --batch 8 --step-ms 1 --steps 4 --rounds 1"
    found = record_of(sampling.main, small, capsys)
    assert found["added_ms"] == found["wait_with_ms"] - found["wait_without_ms"]
    assert found["draw_ms"] > 0


def test_scheduler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "BLOCK", 20)
    rows = record_of(scheduler.main, "--longest 3", capsys)["rows"]
    assert [row["scheduler"] for row in rows[::2]] == list(scheduler.SCHEDULERS)
    assert {row["near step"] for row in rows} == {"1e2", "1e3"}
    assert all(row["× StepLR"] > 0 for row in rows)


def test_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    small = "data.train=synthetic:identities=8,images=8 data.size=32 backbone.width=4"
    small += " optim.batch_size=8 run.precision=fp32 scheduler=constant"
    found = record_of(trainer.main, f"--steps 2 --rounds 1 --overrides {small}", capsys)
    assert found["ratio"] == pytest.approx(found["trainer_ms"] / found["bare_ms"])
