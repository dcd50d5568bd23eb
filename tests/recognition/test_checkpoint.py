"""Checkpoints are whole or absent, checked, bounded in number, and read without executing."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from recognition import checkpoint
from recognition.checkpoint import Damaged, SaveFailed
from recognition.config import ConfigError
from recognition.distributed import Ranks

CPU = torch.device("cpu")
ALONE = Ranks()
T = TypeVar("T")


def _save(
    folder: Path, step: int, keep: int = 2, spare: Path | None = None, ranks: Ranks = ALONE
) -> Path:
    return checkpoint.save(
        folder,
        step,
        {"backbone": {"weight": torch.full((300,), float(step))}, "step": step},
        {"rows": torch.full((2,), step + ranks.rank)},
        ranks,
        config=f"of: {step}\n",
        device=CPU,
        keep=keep,
        spare=spare,
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_of_those_kept(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 20, 100):
        _save(tmp_path, step)
    assert _names(tmp_path) == ["step_00000020", "step_00000100"]
    path = checkpoint.newest(tmp_path)
    assert path is not None
    shared, local = checkpoint.load(path)
    assert shared["step"] == 100
    assert shared["backbone"]["weight"].tolist() == [100.0] * 300
    assert local[0]["rows"].tolist() == [100, 100]


def test_the_spared_checkpoint_stays(tmp_path: Path) -> None:
    best = _save(tmp_path, 5)
    for step in (20, 30, 40):
        _save(tmp_path, step, spare=best)
    assert _names(tmp_path) == ["step_00000005", "step_00000030", "step_00000040"]


def test_the_manifest_has_what_sha256sum_says(tmp_path: Path) -> None:
    path = _save(tmp_path, 5)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"] == {
        name: {
            "bytes": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in ("config.yaml", "model.pt", "rank_0.pt", "shared.pt")
    }
    model = torch.load(path / "model.pt", weights_only=True)
    assert model["weight"].tolist() == [5.0] * 300


def test_an_unfinished_checkpoint_is_not_used_and_removed(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    (tmp_path / "step_00000009.partial").mkdir()
    _save(tmp_path, 7).rename(tmp_path / "step_00000007.replaced")  # killed while it was replaced
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step_00000005"
    checkpoint.remove_partial(tmp_path)
    assert _names(tmp_path) == ["step_00000005", "step_00000007"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (_save(tmp_path, 5) / "shared.pt").write_bytes(b"other")
    checkpoint.load(_save(tmp_path, 5))
    assert _names(tmp_path) == ["step_00000005"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _older(path: Path) -> None:
    shutil.copy(path.parent.with_name("step_00000005") / path.name, path)


@pytest.mark.parametrize("name", ["config.yaml", "model.pt", "shared.pt", "rank_0.pt"])
@pytest.mark.parametrize("harm", [_flip, _cut, _zero, _older, Path.unlink])
def test_a_damaged_newest_one_is_told_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: Callable[[Path], None]
) -> None:
    before, newest = _save(tmp_path, 5), _save(tmp_path, 20)
    harm(newest / name)
    found = checkpoint.load_newest(tmp_path, Ranks(), CPU)
    assert found is not None
    assert (found.path, found.shared["step"]) == (before, 5)
    told, resumed = capsys.readouterr().out.splitlines()
    assert str(newest / name) in told
    assert resumed == f"resume from {before}"
    # It is out of the way, so that it is not counted among those to keep.
    assert _names(tmp_path) == ["step_00000005", "step_00000020.damaged"]


def _lists(path: Path) -> None:
    path.write_text("[[[]]]")


@pytest.mark.parametrize("harm", [_flip, _cut, _zero, _older, Path.unlink, _lists])
def test_a_damaged_manifest(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    _save(tmp_path, 5)
    newest = _save(tmp_path, 20)
    harm(newest / "manifest.json")
    with pytest.raises(Damaged):
        checkpoint.load(newest)


def test_checkpoints_that_changed_places(tmp_path: Path) -> None:
    path = _save(tmp_path, 5)
    with pytest.raises(Damaged, match="is that of step 5"):
        checkpoint.load(path.rename(tmp_path / "step_00000009"))


def test_none_that_is_whole_is_one_line(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path, Ranks(), CPU) is None
    for step in (5, 20):
        _cut(_save(tmp_path, step) / "shared.pt")
    with pytest.raises(ConfigError, match=r"no checkpoint is whole .*step_00000020.*step_00000005"):
        checkpoint.load_newest(tmp_path, Ranks(), CPU)
    assert _names(tmp_path) == ["step_00000005", "step_00000020"]  # Nothing is set aside.


def test_the_saved_config_is_the_newest_whole_one(tmp_path: Path) -> None:
    before, newest = _save(tmp_path, 5), _save(tmp_path, 20)
    assert checkpoint.saved_config(tmp_path) == (newest / "config.yaml", "of: 20\n")
    _flip(newest / "config.yaml")
    assert checkpoint.saved_config(tmp_path) == (before / "config.yaml", "of: 5\n")


def test_model_pt_becomes_that_of_the_checkpoint(tmp_path: Path) -> None:
    saved, target = _save(tmp_path, 5), tmp_path / "model.pt"
    for harm in (Path.unlink, _flip, _cut, Path.touch):
        checkpoint.publish_model(saved, target, Ranks(), CPU)
        assert target.read_bytes() == (saved / "model.pt").read_bytes()
        harm(target)


class _Full(io.FileIO):
    """A file on a drive that has room for 500 bytes."""

    def write(self, data: object) -> int:
        if self.tell() + len(memoryview(data)) > 500:  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_was_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path, 5)
    needed = (path / "model.pt").stat().st_size
    monkeypatch.setattr("data.files.open", lambda path, mode: _Full(path, mode), raising=False)
    with pytest.raises(SaveFailed) as failed:
        _save(tmp_path, 20)
    told = str(failed.value)
    assert f"{tmp_path}/step_00000020.partial/" in told
    assert "No space left on device" in told
    assert "bytes, and " in told
    assert told.endswith(f"--resume goes on from {path}")
    assert _names(tmp_path) == ["step_00000005"]
    with pytest.raises(OSError, match=f"the file needs {needed:,} bytes") as full:
        checkpoint.save_tensors(tmp_path / "model.pt", {"weight": torch.full((300,), 5.0)})
    assert full.value.filename == str(tmp_path / "model.pt")
    monkeypatch.undo()
    checkpoint.load(path)
    assert _names(tmp_path) == ["step_00000005"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_what_the_drive_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(
        SaveFailed, match=f"rank_0.pt: {os.strerror(number)}; there is no checkpoint"
    ):
        _save(tmp_path, 5)
    assert _names(tmp_path) == []


def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match=r"run/checkpoints: No such file or directory"):
        _save(tmp_path / "run" / "checkpoints", 5)
    assert _names(tmp_path) == []


class _Meeting:
    """Where threads that stand for ranks exchange tensors."""

    def __init__(self, world: int) -> None:
        self._barrier, self._given = threading.Barrier(world, timeout=60), [torch.empty(0)] * world

    def all_gather(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self._given[rank] = tensor
        self._barrier.wait()
        gathered = torch.cat(self._given)
        self._barrier.wait()
        return gathered


@dataclass(frozen=True)
class _Rank(Ranks):
    meeting: _Meeting | None = None

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self.meeting
        return self.meeting.all_gather(self.rank, tensor)


def _on_ranks(world: int, work: Callable[[Ranks], T]) -> list[T]:
    meeting = _Meeting(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, [_Rank(rank, world, meeting) for rank in range(world)]))


@pytest.mark.parametrize("harmed", ["rank_0.pt", "rank_1.pt", "rank_2.pt", "shared.pt"])
def test_all_ranks_choose_the_same_checkpoint(
    tmp_path: Path, harmed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 20):
        _on_ranks(3, lambda ranks, step=step: _save(tmp_path, step, ranks=ranks))  # type: ignore[misc]
    _flip(tmp_path / "step_00000020" / harmed)

    def load(ranks: Ranks) -> tuple[str, list[int]]:
        found = checkpoint.load_newest(tmp_path, ranks, CPU)
        assert found is not None
        return found.path.name, [int(state["rows"][0]) for state in found.locals_]

    # Each of three ranks reads its own state; of two, each reads all that were saved.
    name = "step_00000005"
    assert _on_ranks(3, load) == [(name, [5]), (name, [6]), (name, [7])]
    assert capsys.readouterr().out.count("damaged checkpoint") == 1
    assert _on_ranks(2, load) == [(name, [5, 6, 7])] * 2


def test_a_rank_that_can_not_write_fails_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_ranks(3, lambda ranks: _save(tmp_path, 5, ranks=ranks))
    real = checkpoint.save_tensors

    def refuse(path: Path, state: Mapping[str, object]) -> checkpoint.Sum:
        if path.name == "rank_2.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, state)

    monkeypatch.setattr(checkpoint, "save_tensors", refuse)

    def save(ranks: Ranks) -> str:
        with pytest.raises(SaveFailed) as failed:
            _save(tmp_path, 20, ranks=ranks)
        return str(failed.value)

    (told,) = set(_on_ranks(3, save))
    assert told.startswith(f"{tmp_path}/step_00000020.partial/rank_2.pt: No space left on device")
    assert _names(tmp_path) == ["step_00000005"]


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
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


def test_a_changed_number_of_a_model_is_found(tmp_path: Path) -> None:
    """torch.load alone would return it."""
    path = tmp_path / "model.pt"
    checkpoint.save_tensors(path, {"weight": torch.full((300,), 5.0)})
    data = path.read_bytes()
    at = data.index(torch.full((300,), 5.0).numpy().tobytes())
    path.write_bytes(data[: at + 100] + b"\1" + data[at + 101 :])
    assert torch.load(path, weights_only=True)["weight"].unique().numel() == 2
    with pytest.raises(ValueError, match=r"checksum of archive/data/0 is wrong"):
        checkpoint.load_tensors(path)
