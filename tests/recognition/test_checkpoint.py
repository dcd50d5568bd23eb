"""Checkpoints are whole or absent, bounded in number, and read without executing anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recognition import checkpoint
from recognition.distributed import Ranks


def test_newest_of_those_kept(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 20, 100):
        checkpoint.save(
            tmp_path, step, {"step": step}, {"rows": torch.full((2,), step)}, Ranks(), keep=2
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000020", "step_00000100"]
    path = checkpoint.newest(tmp_path)
    assert path is not None
    shared, local = checkpoint.load(path)
    assert shared["step"] == 100
    assert local[0]["rows"].tolist() == [100, 100]


def test_an_unfinished_checkpoint_is_not_used(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, {}, {}, Ranks(), keep=2)
    (tmp_path / "step_00000009.partial").mkdir()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step_00000005"


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("executed",)


def test_weights_that_execute_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    torch.save({"x": _Hostile()}, path)
    with pytest.raises(ValueError, match=r"model\.pt"):
        checkpoint.load_tensors(path)
    assert not (tmp_path / "executed").exists()
    path.write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match=r"model\.pt"):
        checkpoint.load_tensors(path)
