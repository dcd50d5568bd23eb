"""The folder that a run leaves: resolved config, metrics.jsonl, TensorBoard events, plots, environment."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from data.files import written_whole
from recognition.config import Config, ConfigError, to_tree, to_yaml

# May differ between the run and its continuation: they change where and how fast it runs, not what it computes.
_FREE_ON_RESUME = [
    "data.root",
    "data.train",
    "data.threads",
    "evaluate",
    "run.output",
    "run.device",
    "run.log_steps",
    "run.checkpoint_steps",
    "run.keep",
]


def open_run_folder(config: Config, resume: bool) -> Path:
    """Create the folder of a new run, or check that an existing one is of the same config and to be resumed.

    Raises ConfigError where the folder can't be written, exists without `resume`, or holds another run.
    """
    folder = Path(config.run.output)
    written = folder / "config.yaml"
    if written.exists() and not resume:
        raise ConfigError(f"run.output: {folder} holds a run already; add --resume to go on with it, or choose another")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.output: {folder} is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if written.exists():
            _check_same(written, config)
        with written_whole(written, "w") as file:
            file.write(to_yaml(config))
    except OSError as error:
        raise ConfigError(f"run.output: {folder} can't be written ({error.strerror})") from None
    with written_whole(folder / "environment.json", "w") as file:
        json.dump(_environment(), file, indent=1)
    return folder


def _check_same(written: Path, config: Config) -> None:
    before, now = flat(yaml.safe_load(written.read_text())), flat(to_tree(config))
    for key in sorted(before.keys() | now.keys()):
        free = any(key == name or key.startswith(name + ".") for name in _FREE_ON_RESUME)
        if not free and before.get(key) != now.get(key):
            raise ConfigError(
                f"run.output: {written} was made with {key}={before.get(key)!r}, now it is {now.get(key)!r}; "
                "resume with the same value, or choose another folder"
            )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key: {"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, node in tree.items() for key, value in flat(node, f"{prefix}.{name}".strip(".")).items()
    }


def _environment() -> dict[str, Any]:
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "command": sys.argv,
        "git": git.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


class Metrics:
    """metrics.jsonl and TensorBoard of a run. On a resume, lines after `resumed_step` are dropped: they come again."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= resumed_step]
        with written_whole(self._path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._file = open(self._path, "a")  # noqa: SIM115  closed by close()
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl; every number of it also goes to TensorBoard under its own name."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without one that a crash cut short at the end."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def plot_training(folder: Path) -> Path:
    """Loss, learning rate and, where the schedule has one, its signal and threshold over steps: `training.png`."""
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(folder) if "loss" in line]
    steps = [line["step"] for line in lines]
    has_signal = any(line.get("schedule/signal") is not None for line in lines)
    figure = Figure(figsize=(8, 8 if has_signal else 6), layout="constrained")
    axes = figure.subplots(3 if has_signal else 2, 1, sharex=True)
    axes[0].plot(steps, [line["loss"] for line in lines], linewidth=0.8)
    axes[0].set_ylabel("loss")
    axes[1].plot(steps, [line["learning_rate"] for line in lines], drawstyle="steps-post")
    axes[1].set_ylabel("learning rate")
    if has_signal:
        signal = [
            (s, line["schedule/signal"])
            for s, line in zip(steps, lines, strict=True)
            if line.get("schedule/signal") is not None
        ]
        threshold = [line.get("schedule/threshold") for line in lines]
        axes[2].plot(*zip(*signal, strict=True), linewidth=0.8, label="signal")
        axes[2].plot(steps, threshold, linestyle="--", linewidth=0.8, label="threshold λ")
        axes[2].set_yscale("symlog", linthresh=1e-5)
        axes[2].legend()
        axes[2].set_ylabel("how fast the loss falls")
    axes[-1].set_xlabel("optimizer step")
    for axis in axes:
        axis.grid(alpha=0.3)
    path = folder / "training.png"
    figure.savefig(path, dpi=120)
    return path
