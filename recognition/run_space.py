"""Room on the drive for what a run saves, checked before the run."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recognition.checkpoint import checkpoints
from recognition.config import Config, ConfigError
from recognition.parts import CLASSIFIER_GROUP, Parts

_PER_TENSOR = 400  # bytes of its name and header in a file of torch.save


@dataclass(frozen=True)
class Sizes:
    """About how many bytes a checkpoint of all ranks has, and how many model.pt."""

    checkpoint: int
    model: int


def sizes_of(parts: Parts) -> Sizes:
    """The sizes of what a run will save. Every rank calls it.

    An optimizer makes its state of a weight with its first step: one number per weight with SGD,
    two with AdamW.
    """
    per_weight = 2 if isinstance(parts.optimizer, torch.optim.AdamW) else 1
    missing = {"classifier": 0, "backbone": 0}
    for group in parts.optimizer.param_groups:
        kind = "classifier" if group["name"] == CLASSIFIER_GROUP else "backbone"
        for weight in group["params"]:
            if weight not in parts.optimizer.state:
                missing[kind] += per_weight * _saved_bytes(weight)
    shared, local = parts.state_dict()
    own = torch.tensor(_saved_bytes(local) + missing["classifier"], device=parts.device)
    of_ranks = int(parts.ranks.all_reduce_sum(own))
    return Sizes(
        _saved_bytes(shared) + missing["backbone"] + of_ranks, _saved_bytes(shared["backbone"])
    )


def _saved_bytes(tree: Any) -> int:
    """Bytes of the tensors in a tree, with their names and headers in a file of torch.save."""
    if torch.is_tensor(tree):
        return int(tree.numel()) * tree.element_size() + _PER_TENSOR
    if isinstance(tree, dict):
        return sum(map(_saved_bytes, tree.values()))
    return sum(map(_saved_bytes, tree)) if isinstance(tree, (list, tuple)) else 0


def check_space(config: Config, sizes: Sizes) -> None:
    """Raise ConfigError unless the drive has room for what the run saves.

    A new checkpoint, and a new model.pt, is written before an old one is removed. What was saved
    before makes room.
    """
    folder = Path(config.run.output)
    number = config.run.keep + 1 + (config.run.keep_best is not None)
    saved = checkpoints(folder / "checkpoints")
    files = [file for path in saved for file in path.glob("*")] + [*folder.glob("model.pt")]
    there = sum(file.stat().st_size for file in files)
    needed = number * sizes.checkpoint + 2 * sizes.model - there
    drive = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(drive).free
    if free < needed:
        raise ConfigError(
            f"run.output: {folder} needs {needed:,} bytes more for {number} checkpoints, and "
            f"{free:,} are free; free some, lower run.keep, or choose a folder on another drive"
        )
