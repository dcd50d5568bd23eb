"""What is known of how a model was trained and measured: from its run, or from an exported folder.

An exported folder holds it in two files, `training.json` (config and environment) and
`results.json`. The folders of the machine and the command line are left out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from data.faces import CHOSEN, JOINED
from data.files import read_text

TRAINING, RESULTS = "training.json", "results.json"
WEIGHTS = ("model.pt", "model.safetensors", "model.onnx")
_KEPT = ("git", "python", "torch", "gpu", "training_set")
_OUTSIDE = re.compile(r"[/~\\]|\.\.|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Record:
    """Nothing in it is required: a published file of weights says nothing of its training.

    config: of the run, without folders of the machine. environment: git revision, versions, counts
    of the training set. results: the entries of results.json with figures.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Mapping[str, Any], ...] = ()


def read_record(model: str | Path) -> Record:
    """The record of a run folder, an exported folder, a checkpoint, or the weights in one of these.

    ValueError for a file that is there but can't be read.
    """
    path = Path(model)
    if not path.is_dir() and path.name not in WEIGHTS:
        return Record()
    folder = path if path.is_dir() else path.parent
    results: Any = _read(folder / RESULTS).get("results", [])
    config: Any
    environment: Any
    if (folder / TRAINING).exists():
        training = _read(folder / TRAINING)
        config, environment = training.get("config"), training.get("environment")
    else:
        run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
        config, environment = _read(folder / "config.yaml"), _read(run / "environment.json")
    if not _is_record(config, environment, results):
        raise ValueError(
            f"{folder}: damaged: the record of the model's training and evaluation ({TRAINING} or "
            f"config.yaml and environment.json, {RESULTS}) has an unknown form"
        )
    kept = {key: environment[key] for key in _KEPT if environment.get(key) is not None}
    measured = tuple(one for one in results if not one.get("skipped"))
    return Record(without_folders(config), kept, measured)


def _is_record(config: Any, environment: Any, results: Any) -> bool:
    """Whether the trees have the form that train.py writes, as far as a card reads them."""
    trees = [config, environment, *(results if isinstance(results, list) else [None])]
    if not all(isinstance(tree, Mapping) for tree in trees):
        return False
    counts = environment.get("training_set", {})
    inner = [counts, *config.values()]
    inner += [one.get(key) or {} for one in results for key in ("metrics", "settings")]
    return (
        all(isinstance(tree, Mapping) for tree in inner)
        and all(isinstance(count, int) for count in counts.values())
        and all(isinstance(one.get("notes") or [], list) for one in results)
    )


def write_record(record: Record, folder: Path) -> None:
    """Write training.json and, if the model was evaluated, results.json."""
    files: dict[str, Any] = {}
    if record.config:
        files[TRAINING] = {"config": record.config, "environment": record.environment}
    if record.results:
        files[RESULTS] = {"published": None, "results": record.results}
    for name, tree in files.items():
        (folder / name).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def without_folders(tree: Any) -> Any:
    """Names of files in a config without the folders of this machine: `/home/me/a.rec` -> `a.rec`.

    Relative paths below the working directory stay.
    """
    if isinstance(tree, Mapping):
        return {key: without_folders(node) for key, node in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_folders(node) for node in tree]
    if not isinstance(tree, str):
        return tree
    return ";".join(map(_last_name, tree.split(";")))


def _last_name(path: str) -> str:
    for begin in (JOINED, CHOSEN):
        if path.startswith(begin):
            return begin + _last_name(path.removeprefix(begin))
    if not _OUTSIDE.match(path):
        return path
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; nothing if there is no such file."""
    if not path.exists():
        return {}
    try:
        text = read_text(path)
        tree = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: damaged; expected keys and values")
    return tree
