"""Checkpoints that survive a crash: one folder per saved step.

    checkpoints/step_00001200/shared.pt    backbone, its optimizer state, schedule, position, step
    checkpoints/step_00001200/rank_0.pt    what rank 0 alone holds: its centers, or its class pool

A folder is written under another name, flushed to disk, and then renamed. Files are loaded with
`torch.load(weights_only=True)`, so nothing in a checkpoint is executed.
"""

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
    """Write `state` (tensors and plain values) with torch.save, whole or not at all."""
    with atomic_write(path) as file:
        torch.save(dict(state), file)


def load_tensors(path: Path) -> dict[str, Any]:
    """What `save_tensors` wrote, on the CPU.

    Raises FileNotFoundError, or a ValueError that names a file which is damaged or of another kind.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
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
    """Write the checkpoint of `step`, keep the newest `keep`, and remove the others.

    Every rank calls it. shared: the state that is equal on all ranks. local: the state that only
    this rank holds.
    """
    first = ranks.rank == 0
    final = folder / f"step_{step:08d}"
    partial = folder / f"step_{step:08d}.partial"

    # Remove what an interrupted call left behind.
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    ranks.barrier()

    # All ranks write at the same time, each to its own file.
    save_tensors(partial / f"rank_{ranks.rank}.pt", local)
    if first:
        save_tensors(partial / "shared.pt", {**shared, "world": ranks.world})
    ranks.barrier()

    # The checkpoint exists from this renaming on; older ones are removed only after it.
    if first:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
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
    """(shared, locals): the shared state, and the states of the ranks that wrote it, in order."""
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
