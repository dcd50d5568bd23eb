"""The folder of a run: who may write into it, its resolved config, and its environment."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from data.files import atomic_write
from data.parts import part_names
from recognition.checkpoint import newest, remove_partial, saved_config
from recognition.config import Config, ConfigError, Part
from recognition.parse import to_tree, to_yaml
from recognition.run_lock import check_unlocked, run_lock
from recognition.run_space import Sizes, check_space
from recognition.schedulers import SCHEDULERS, any_length

# These keys may differ between a run and its continuation. They change where the run happens and
# how fast it is, not what it computes. Those of `optim` divide the same steps otherwise, or change
# the batch in the way that the user asks for; optim.step_images stays. The fingerprint of the set
# guards the keys of `data`, and the teacher's digest those of `teacher`.
_FREE_ON_RESUME = [
    "data.root",
    "data.train",
    "data.subset",
    "data.renumber",
    "data.threads",
    "evaluate",
    "teacher.model",
    "teacher.vectors",
    "optim.batch_size",
    "optim.accumulation",
    "optim.changed_batch",
    "run.output",
    "run.device",
    "run.log_steps",
    "run.max_steps",
    "run.checkpoint_steps",
    "run.keep",
    "run.keep_best",
    "run.trackers",
]


def with_saved_choices(config: Config) -> Config:
    """A config to resume, with what the first start of its run chose where it leaves a choice.

    The same chunk gives the same bits, also where another amount of memory is free now. The same
    images per optimizer step give the same steps, on any number of processes.
    """
    found = _saved_config(Path(config.run.output))
    if found is None:
        return config
    saved = found[1]
    chunk, step_images = saved.get("classifier.chunk"), saved.get("optim.step_images")
    if config.classifier.options.get("chunk") == "auto" and isinstance(chunk, int):
        config = with_chunk(config, chunk)
    if config.optim.step_images is None and isinstance(step_images, int):
        config = replace(config, optim=replace(config.optim, step_images=step_images))
    return config


def with_chunk(config: Config, chunk: int | str) -> Config:
    """The config with another `classifier.chunk`."""
    options = {**config.classifier.options, "chunk": chunk}
    return replace(config, classifier=Part(config.classifier.name, options))


def check_run_folder(config: Config, resume: bool) -> None:
    """Raise ConfigError if `run.output` can't be the folder of this run. It writes nothing.

    That is so if it is a file, if a run is going on in it, and without `resume` if it holds a run.
    """
    folder = Path(config.run.output)
    with _told_as_config_error(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"run.output: {folder} is a file; give a folder")
        check_unlocked(folder)
        if not resume and _holds_run(folder):
            raise ConfigError(
                f"run.output: {folder} holds a run already; add --resume to continue it, or choose "
                "another folder"
            )


def _holds_run(folder: Path) -> bool:
    """Whether there is anything that a new run would destroy.

    A command that failed before its first log line leaves config.yaml and no more, and can be
    repeated.
    """
    metrics = folder / "metrics.jsonl"
    written = any((folder / name).exists() for name in ("model.pt", "results.json"))
    return bool(
        written or newest(folder / "checkpoints") or (metrics.exists() and metrics.stat().st_size)
    )


@contextmanager
def open_run_folder(
    config: Config, resume: bool, sizes: Sizes, training_set: Mapping[str, int]
) -> Iterator[Path]:
    """The folder of a new run, or one that holds the run to be resumed, locked for this process.

    sizes: of what the run will save. training_set: its counts, for environment.json.

    Raises ConfigError where the folder can't be written, holds a run although `resume` is false,
    holds the run of another config, is in use, or has no room for the checkpoints.
    """
    folder = Path(config.run.output)
    check_run_folder(config, resume)
    check_space(config, sizes)
    with ExitStack() as lock:
        with _told_as_config_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(run_lock(folder))
            if resume:
                _check_same(config)
            _remove_partial(folder)
            with atomic_write(folder / "config.yaml", "w") as file:
                file.write(to_yaml(config))
            with atomic_write(folder / "environment.json", "w") as file:
                json.dump({**_environment(), "training_set": dict(training_set)}, file, indent=1)
        yield folder


@contextmanager
def _told_as_config_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise ConfigError(f"run.output: {where} can't be written ({error.strerror})") from None


def _check_same(config: Config) -> None:
    folder = Path(config.run.output)
    saved = _saved_config(folder)
    if saved is None:
        if (folder / "config.yaml").exists():
            print(f"{folder / 'config.yaml'}: damaged, and written anew from this config")
        return
    written, before = saved
    now = flat(to_tree(config))
    for key in sorted(before.keys() | now.keys()):
        free = any(key == name or key.startswith(name + ".") for name in _FREE_ON_RESUME)
        if free or before.get(key) == now.get(key) or _lengthens(config, key, before.get(key)):
            continue
        if key not in before and _is_default(config, key):  # a version before this key wrote it
            continue
        raise ConfigError(
            f"run.output: {written} was made with {key}={before.get(key)!r}, now it is "
            f"{now.get(key)!r}; {_advice(config, key, before.get(key))}"
        )


def _is_default(config: Config, key: str) -> bool:
    """Whether a key has its default; False for a part's options, whose defaults may change."""
    *sections, name = key.split(".")
    owner: Any = config
    for section in sections:
        owner = getattr(owner, section, None)
    return is_dataclass(owner) and any(
        field.name == name and field.default == getattr(owner, name) for field in fields(owner)
    )


def _lengthens(config: Config, key: str, before: object) -> bool:
    """Whether a run is given more epochs, and its schedule allows that."""
    longer = isinstance(before, int) and config.optim.epochs > before
    fades = config.teacher.given and config.teacher.schedule == "fade"
    planned = fades or config.data.size_schedule
    able = any_length(config.scheduler.name) and not planned
    return key == "optim.epochs" and longer and able


def _advice(config: Config, key: str, before: object) -> str:
    if key != "optim.epochs" or not isinstance(before, int):
        return "resume with the same value, or choose another folder"
    if config.optim.epochs < before:
        return "resume with the same value; run.max_steps ends a run earlier"
    if config.data.size_schedule:
        return (
            "data.size_schedule is planned for the epochs of the run; start a new run in another "
            f"folder with init.weights={config.run.output}"
        )
    able = ", ".join(name for name in part_names(SCHEDULERS) if any_length(name))
    if any_length(config.scheduler.name):
        return "teacher.schedule=fade is planned for the epochs of the run; start a new run"
    return (
        f"the {config.scheduler.name} schedule is planned for the epochs of the run (others can go "
        f"on: {able}); start a new run in another folder with init.weights={config.run.output}"
    )


def _saved_config(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The config of the run in a folder by dotted key, and the file that it comes from.

    A checkpoint's copy is checked, so it counts more than config.yaml in the folder, which is
    written anew. None if there is neither, or only a config.yaml that can't be read.
    """
    saved = saved_config(folder / "checkpoints")
    if saved is not None:
        return saved[0], flat(yaml.safe_load(saved[1]))
    written = folder / "config.yaml"
    try:
        tree = yaml.safe_load(written.read_bytes())
        return (written, flat(tree)) if isinstance(tree, dict) else None
    except (FileNotFoundError, ValueError, yaml.YAMLError, RecursionError):
        return None


def _remove_partial(folder: Path) -> None:
    """Remove what writing left behind where a crash cut it off."""
    remove_partial(folder / "checkpoints")
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "model.pt"):
        for path in folder.glob(f".{name}.*.partial"):
            path.unlink()


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
    """The git revision of this code, with `-dirty` where files differ from it; None without git."""
    here = Path(__file__).parent
    try:
        git = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True
        )
    except OSError:  # this machine has no git
        return None
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
