"""Runs the snippets of fastface/README.md unchanged."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from fastface.schedulers import FastFaceLR

README = Path(__file__).parents[2] / "fastface/README.md"


def run_snippet(heading: str, folder: Path) -> ModuleType:
    section = README.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    path = folder / "snippet.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("snippet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_it_read_every_loss(scheduler: FastFaceLR) -> None:
    assert scheduler.last_epoch == 1000
    assert scheduler.signal is not None
    assert scheduler.decays > 0
    # The cooldown ends at zero with the run.
    assert scheduler.get_last_lr()[0] == scheduler.optimizer.param_groups[0]["lr"] == 0.0


def test_plain_loop(tmp_path: Path) -> None:
    assert_it_read_every_loss(run_snippet("In your own training loop", tmp_path).scheduler)


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    monkeypatch.chdir(tmp_path)
    trainer = run_snippet("In Lightning", tmp_path).trainer
    assert_it_read_every_loss(trainer.lr_scheduler_configs[0].scheduler)


def test_hugging_face_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip(
        "accelerate", reason="accelerate, which the Trainer needs, is not installed"
    )
    monkeypatch.chdir(tmp_path)
    snippet = run_snippet("In the Hugging Face Trainer", tmp_path)
    assert_it_read_every_loss(snippet.trainer.lr_scheduler)
    assert not snippet.TrainerLR.losses
