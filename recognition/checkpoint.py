"""Checkpoints that survive a crash: one folder a step, written beside, fsynced, renamed into place.

    checkpoints/step_00001200/shared.pt    backbone, its optimizer state, schedule, position in the
    data, step
    checkpoints/step_00001200/rank_0.pt    rank 0's centers and their optimizer state, or gallery
    network and class pool

Read with `torch.load(weights_only=True)`: nothing in a checkpoint is executed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.files import atomic_write
from recognition.distributed import Ranks

_STEP = re.compile(r"step_(\d{8})")


def save_tensors(path: Path, state: Mapping[str, Any]) -> None:
    """torch.save of `state` (tensors and plain values), atomically."""
    with atomic_write(path) as file:
        torch.save(dict(state), file)


def load_tensors(path: Path) -> dict[str, Any]:
    """What `save_tensors` wrote, on the CPU. Raises ValueError naming the file if it is not such a
    file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises half a dozen kinds for damaged or hostile files
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable weights file ({first})") from None


def save(
    folder: Path,
    step: int,
    shared: Mapping[str, Any],
    local: Mapping[str, Any],
    ranks: Ranks,
    keep: int,
) -> Path:
    """Write the checkpoint of `step`; every rank calls it. Keeps the newest `keep` and removes the
    others."""
    final = folder / f"step_{step:08d}"
    beside = folder / f"step_{step:08d}.partial"
    if ranks.rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    ranks.barrier()
    save_tensors(beside / f"rank_{ranks.rank}.pt", local)
    if ranks.rank == 0:
        save_tensors(beside / "shared.pt", {**shared, "world": ranks.world})
    ranks.barrier()
    if ranks.rank == 0:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
        _sync_folder(folder)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The shared state of a checkpoint and the local states of all the ranks that wrote it, in rank
    order."""
    shared = load_tensors(path / "shared.pt")
    return shared, [load_tensors(path / f"rank_{rank}.pt") for rank in range(shared["world"])]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if _STEP.fullmatch(path.name))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
