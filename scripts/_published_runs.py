"""The published rows with their recipes, and our runs of them."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.parts import hint
from eval.report.published import benchmark_key, published_rows
from recognition.parse import load_config, to_tree
from recognition.run_folder import flat
from scripts._curves import training_lines
from tools.plan import plan

CONFIGS = Path(__file__).parents[1] / "configs"
# The keys that make a run one of the row. Others may differ: where it ran, how often it logged.
RECIPE = (
    "data.size",
    "data.order",
    "data.augment",
    "backbone",
    "head",
    "classifier",
    "optim",
    "scheduler",
)
Figures = dict[tuple[str, str], float]  # in percent, by benchmark and metric


@dataclass(frozen=True)
class Run:
    """A run folder of the published row `row`. notes: how it differs from the row's recipe."""

    folder: Path
    row: str
    figures: Figures
    hours: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A published row, how to train it, and our runs of it.

    memory: planned bytes of each of the `ranks` processes.
    """

    name: str
    table: str
    published: dict[str, Any]
    command: str
    ranks: int
    memory: int
    runs: tuple[Run, ...]

    @property
    def figures(self) -> Figures:
        return {
            (benchmark, metric): figure
            for benchmark, of in self.published.items()
            if isinstance(of, dict)
            for metric, figure in of.items()
        }


def choose_tables(asked: Sequence[str]) -> list[str]:
    """The tables that are asked for, or all. ValueError for an unknown one names the nearest."""
    known = list(dict.fromkeys(row["table"] for row in published_rows().values()))
    for name in asked:
        if name not in known:
            raise ValueError(f"--table {name}: no such table; {hint(name, known)}")
    return list(asked) or known


def read_runs(root: Path) -> list[Run]:
    """The runs below `root` that name a published row; ValueError if a file is broken."""
    if not root.is_dir():
        raise FileNotFoundError(f"--runs {root}: no such folder; expected one with run folders")
    runs = []
    for path in sorted(root.rglob("config.yaml")):
        tree = yaml.safe_load(path.read_text())
        row = tree.get("evaluate", {}).get("published") if isinstance(tree, dict) else None
        results = [path.parent / "results.json", *sorted(path.parent.glob("*/results.json"))]
        results = [file for file in results if file.exists()]
        if row is None or not results:
            continue
        if row not in published_rows():
            where = "which eval/report/published.yaml does not have"
            raise ValueError(f"{path}: evaluate.published: found {row!r}, {where}")
        lines = training_lines(path.parent)
        hours = lines[-1]["seconds"] / 3600 if lines else None
        notes = (*_unfinished(lines, tree["optim"]["epochs"]), *_changed(tree, row))
        runs.append(Run(path.parent, row, _figures(results), hours, notes))
    return runs


def _figures(results: list[Path]) -> Figures:
    """The figures of all files. If two files hold the same one, the first file counts."""
    found: Figures = {}
    for file in results:
        try:
            for result in json.loads(file.read_text())["results"]:
                for metric, value in result["metrics"].items():
                    if value is not None:
                        found.setdefault((benchmark_key(result["name"]), metric), value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a results.json of this project ({error!r})") from None
    return found


def _unfinished(lines: list[dict[str, Any]], epochs: int) -> Iterator[str]:
    done = lines[-1]["epoch"] if lines else 0.0
    if done < epochs:
        yield f"unfinished: epoch {done:.1f} of {epochs}"


def _changed(tree: dict[str, Any], row: str) -> Iterator[str]:
    """Settings of the recipe in which a run's config.yaml differs from configs/ROW.yaml."""
    ran, config = flat(tree), flat(to_tree(load_config(CONFIGS / f"{row}.yaml")))
    for key in sorted(ran.keys() | config.keys()):
        in_recipe = any(key == name or key.startswith(name + ".") for name in RECIPE)
        if in_recipe and ran.get(key) != config.get(key):
            yield f"{key} {ran.get(key)}, the config has {config.get(key)}"


def read_rows(table: str, runs: Sequence[Run]) -> list[Row]:
    """The rows of a table with their plans and our runs."""
    return [
        _read_row(name, published, runs)
        for name, published in published_rows().items()
        if published["table"] == table
    ]


def _read_row(name: str, published: dict[str, Any], runs: Sequence[Run]) -> Row:
    path = CONFIGS / f"{name}.yaml"
    command = start_command(path)
    torchrun = re.match(r"torchrun --nproc_per_node=(\d+) ", command)
    ranks = int(torchrun[1]) if torchrun else 1
    planned = plan(str(path), [], published["identities"], None, ranks)
    memory = planned["bytes"]["peak"]
    ours = tuple(run for run in runs if run.row == name)
    return Row(name, published["table"], published, command, ranks, memory, ours)


def start_command(path: Path) -> str:
    """The first command after `Start:` in a config's header comment."""
    found = re.search(r"^# Start: (.+)$", path.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path}: expected a line `# Start: COMMAND` in the header")
    return found[1]
