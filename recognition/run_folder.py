"""The folder of a run: who may write into it, its resolved config, and its environment."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from data.files import atomic_write
from recognition.config import Config, ConfigError, Part
from recognition.parse import to_tree, to_yaml

# These keys may differ between a run and its continuation. They change where the run happens and
# how fast it is, not what it computes. Those of `optim` divide the same steps otherwise, or change
# the batch in the way that the user asks for; optim.step_images stays.
_FREE_ON_RESUME = [
    "data.root",
    "data.train",
    "data.threads",
    "evaluate",
    "optim.batch_size",
    "optim.accumulation",
    "optim.changed_batch",
    "run.output",
    "run.device",
    "run.log_steps",
    "run.checkpoint_steps",
    "run.keep",
]


def with_saved_choices(config: Config) -> Config:
    """A config to resume, with what the first start of its run chose where it leaves a choice.

    The same chunk gives the same bits, also where another amount of memory is free now. The same
    images per optimizer step give the same steps, on any number of processes.
    """
    written = Path(config.run.output) / "config.yaml"
    if not written.exists():
        return config
    saved = flat(yaml.safe_load(written.read_text()))
    if config.classifier.options.get("chunk") == "auto":
        config = with_chunk(config, saved.get("classifier.chunk", "auto"))
    if config.optim.step_images is None:
        step_images = saved.get("optim.step_images")
        config = replace(config, optim=replace(config.optim, step_images=step_images))
    return config


def with_chunk(config: Config, chunk: int | str) -> Config:
    """The config with another `classifier.chunk`."""
    options = {**config.classifier.options, "chunk": chunk}
    return replace(config, classifier=Part(config.classifier.name, options))


def open_run_folder(config: Config, resume: bool) -> Path:
    """Create the folder of a new run, or check that an existing one holds the run to be resumed.

    Raises ConfigError where the folder can't be written, holds a run although `resume` is false, or
    holds the run of another config.
    """
    folder = Path(config.run.output)
    written = folder / "config.yaml"
    if written.exists() and not resume:
        raise ConfigError(
            f"run.output: {folder} holds a run already; add --resume to continue it, or choose "
            "another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.output: {folder} is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if written.exists():
            _check_same(written, config)
        with atomic_write(written, "w") as file:
            file.write(to_yaml(config))
    except OSError as error:
        raise ConfigError(f"run.output: {folder} can't be written ({error.strerror})") from None
    with atomic_write(folder / "environment.json", "w") as file:
        json.dump(_environment(), file, indent=1)
    return folder


def _check_same(written: Path, config: Config) -> None:
    before, now = flat(yaml.safe_load(written.read_text())), flat(to_tree(config))
    for key in sorted(before.keys() | now.keys()):
        free = any(key == name or key.startswith(name + ".") for name in _FREE_ON_RESUME)
        if not free and before.get(key) != now.get(key):
            raise ConfigError(
                f"run.output: {written} was made with {key}={before.get(key)!r}, now it is "
                f"{now.get(key)!r}; resume with the same value, or choose another folder"
            )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key: {"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, node in tree.items()
        for key, value in flat(node, f"{prefix}.{name}".strip(".")).items()
    }


def revision() -> str | None:
    """The git revision of this code, with `-dirty` where files differ from it; None outside git."""
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return git.stdout.strip() or None


def _environment() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "git": revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
