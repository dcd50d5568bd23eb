"""The papers' tables: published figures, ours and the difference; for rows not run, the command and
the plan.

    python -m scripts.reproduce [--table fastface ...] [--runs DIR] [--logs FILE ...] [--out DIR]

The rows are those of eval/report/published.yaml; configs/ROW.yaml trains a row. A folder below DIR
that holds config.yaml and results.json is a run of the row that its `evaluate.published` names,
whatever the folder is called. All results.json in it count, its own first: `python -m eval
templates --model RUN --root IJBC --out RUN/ijbc` adds IJB-C.

Written to --out: tables.md, tables.csv, and loss.png of the runs and of --logs, where there are
any. A log is a CSV with columns step, loss and learning_rate, or, named .log or .txt, what
arcface_torch and FastFace write; either may be gzipped, named .gz.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.files import atomic_write
from eval.report.published import benchmark_key, published_figure, published_rows
from recognition.logs import read_metrics
from recognition.parse import load_config, to_tree
from recognition.run_folder import flat
from tools.plan import plan

ROOT = Path(__file__).parents[1]
SHOWN = {
    ("lfw", "accuracy"): "LFW",
    ("cfp_fp", "accuracy"): "CFP-FP",
    ("agedb_30", "accuracy"): "AgeDB-30",
    ("ijbb", "nearest_tar@0.0001"): "IJB-B 1e-4",
    ("ijbc", "nearest_tar@0.0001"): "IJB-C 1e-4",
    ("ijbc", "nearest_tar@1e-05"): "IJB-C 1e-5",
}
# What a run may change and still be the row's: where it ran, and how often it logged.
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
LOG_LINE = re.compile(
    r"Loss (?P<loss>\S+) +LearningRate (?P<learning_rate>\S+) .*Global Step: (?P<step>\d+)"
)
POINTS = 1000  # of a curve in the figure; each is the mean of the losses between two

Figures = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Run:
    """A run folder of the published row `row`. figures: percent by (benchmark, metric). notes: what
    to know of it."""

    folder: Path
    row: str
    figures: Figures
    hours: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A published row, how to train it, and our runs of it. memory: planned bytes a rank, with
    `ranks` processes."""

    name: str
    table: str
    published: dict[str, Any]
    command: str
    ranks: int
    memory: int
    runs: tuple[Run, ...]

    def figures(self) -> Figures:
        benchmarks = {
            key: value for key, value in self.published.items() if isinstance(value, dict)
        }
        return {
            (name, metric): figure
            for name, of in benchmarks.items()
            for metric, figure in of.items()
        }


@dataclass(frozen=True)
class Curve:
    """A run's logged steps (N,), losses (N,) and, where logged, learning rates (N,)."""

    label: str
    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray | None


def choose_tables(asked: Sequence[str]) -> list[str]:
    """The tables asked for, all of them if none was. ValueError names the nearest of an unknown
    one."""
    known = list(dict.fromkeys(row["table"] for row in published_rows().values()))
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            raise ValueError(f"--table {name}: no such table; there are {', '.join(near or known)}")
    return list(asked) or known


def read_runs(root: Path) -> list[Run]:
    """The runs below `root` that name a published row. OSError without `root`, ValueError for
    broken files."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"--runs {root}: no such folder; give the folder that holds run folders"
        )
    runs = []
    for path in sorted(root.rglob("config.yaml")):
        tree = yaml.safe_load(path.read_text())
        row = tree.get("evaluate", {}).get("published") if isinstance(tree, dict) else None
        results = [path.parent / "results.json", *sorted(path.parent.glob("*/results.json"))]
        results = [file for file in results if file.exists()]
        if row is None or not results:
            continue
        if row not in published_rows():
            raise ValueError(
                f"{path}: evaluate.published: found {row!r}, which eval/report/published.yaml does not have"
            )
        lines = [line for line in read_metrics(path.parent) if "loss" in line]
        hours = lines[-1]["seconds"] / 3600 if lines else None
        notes = (*_unfinished(lines, tree["optim"]["epochs"]), *_changed(tree, row))
        runs.append(Run(path.parent, row, _figures(results), hours, notes))
    return runs


def _figures(results: list[Path]) -> Figures:
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
    """Settings of the recipe in which a run's config.yaml is not configs/ROW.yaml."""
    ran, config = flat(tree), flat(to_tree(load_config(_config(row))))
    for key in sorted(ran.keys() | config.keys()):
        in_recipe = any(key == part or key.startswith(part + ".") for part in RECIPE)
        if in_recipe and ran.get(key) != config.get(key):
            yield f"{key} {ran.get(key)}, the config has {config.get(key)}"


def _config(row: str) -> Path:
    return ROOT / "configs" / f"{row}.yaml"


def read_rows(table: str, runs: Sequence[Run]) -> list[Row]:
    """The rows of a table with their plans and our runs."""
    rows = []
    for name, published in published_rows().items():
        if published["table"] == table:
            command = start_command(_config(name))
            torchrun = re.match(r"torchrun --nproc_per_node=(\d+) ", command)
            ranks = int(torchrun[1]) if torchrun else 1
            memory = plan(str(_config(name)), [], published["identities"], None, ranks)["bytes"][
                "peak"
            ]
            rows.append(
                Row(
                    name,
                    table,
                    published,
                    command,
                    ranks,
                    memory,
                    tuple(run for run in runs if run.row == name),
                )
            )
    return rows


def start_command(path: Path) -> str:
    """The first command after `Start:` in a config's header comment."""
    found = re.search(r"^# Start: (.+)$", path.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path}: expected a line `# Start: COMMAND` in the header")
    return found[1]


def markdown(tables: dict[str, list[Row]]) -> str:
    """For each table: a line for each published row, and below it one for each run of ours with the
    differences.

    Hours are on one GPU unless another number follows, memory is for one unless it says so.
    """
    lines = []
    for table, rows in tables.items():
        shown = {
            key: head for key, head in SHOWN.items() if any(key in row.figures() for row in rows)
        }
        heads = ["row", *shown.values(), "hours", "planned memory", "ours"]
        lines += [f"## {table}", "", _line(heads), _line(["---"] * len(heads))]
        notes = []
        for row in rows:
            lines.append(
                _line(
                    [f"`{row.name}`", *_published_cells(row, shown), "" if row.runs else "not run"]
                )
            )
            for run in row.runs:
                hours = "" if run.hours is None else f"{run.hours:.2f}"
                lines.append(
                    _line(
                        [
                            "",
                            *(_our_cell(row, run, key) for key in shown),
                            hours,
                            "",
                            f"`{run.folder}`",
                        ]
                    )
                )
                notes += [f"- `{run.folder}`: {note}." for note in run.notes]
        lines += ["", *notes, *([""] if notes else [])]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _published_cells(row: Row, shown: dict[tuple[str, str], str]) -> list[str]:
    figures = [row.figures().get(key) for key in shown]
    memory = f"{row.memory / 1e9:.1f} GB" + (f" on each of {row.ranks}" if row.ranks > 1 else "")
    hours = str(row.published.get("hours", "")) + (
        f" on {row.published['gpus']}" if "gpus" in row.published else ""
    )
    return [*("" if f is None else f"{f:.2f}" for f in figures), hours, memory]


def _our_cell(row: Row, run: Run, key: tuple[str, str]) -> str:
    if key not in run.figures:
        return ""
    ours, published = run.figures[key], published_figure(row.published, *key)
    return f"{ours:.2f}" + ("" if published is None else f" ({round(ours - published, 2):+.2f})")


def csv_text(tables: dict[str, list[Row]]) -> str:
    """A line for each figure that is published or ours, for each run; a row without either has one
    line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["table", "row", "run", "benchmark", "metric", "published", "ours", "difference"]
        + [
            "published_hours",
            "published_gpus",
            "our_hours",
            "planned_bytes",
            "processes",
            "command",
            "notes",
        ]
    )
    for row in (row for rows in tables.values() for row in rows):
        for run in row.runs or (None,):
            ours = run.figures if run else {}
            published = row.figures()
            both = list(published) + [
                key for key in ours if key[0] in row.published and key not in published
            ]
            for key in both or [("", "")]:
                theirs, mine = published.get(key), ours.get(key)
                difference = None if theirs is None or mine is None else round(mine - theirs, 2)
                writer.writerow(
                    [row.table, row.name, run.folder if run else "", *key, theirs, mine, difference]
                    + [
                        row.published.get("hours"),
                        row.published.get("gpus", 1),
                        run.hours if run else None,
                    ]
                    + [
                        row.memory,
                        row.ranks,
                        row.command,
                        "; ".join(run.notes) if run else "not run",
                    ]
                )
    return text.getvalue()


def read_log(path: Path) -> Curve:
    """A published log, named as its file is. ValueError or OSError where it can't be read or holds
    no steps."""
    opened = gzip.open if path.suffix == ".gz" else open
    name = path.name.removesuffix(".gz")
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            if name.endswith((".log", ".txt")):
                rows = [found.groupdict() for found in map(LOG_LINE.search, file) if found]
            else:
                rows = list(csv.DictReader(file))
    except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, or no text: {error}") from None
    columns = set(rows[0]) if rows else set()
    if not {"step", "loss"} <= columns:
        raise ValueError(
            f"{path}: the columns are {sorted(map(str, columns))}, expected step, loss and learning_rate"
        )
    try:
        steps, losses = (np.array([float(row[name]) for row in rows]) for name in ("step", "loss"))
        rates = (
            np.array([float(row["learning_rate"]) for row in rows])
            if "learning_rate" in columns
            else None
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers in every line: {error}") from None
    return Curve(Path(name).stem, steps, losses, rates)


def run_curve(run: Run) -> Curve | None:
    """The curve of a run's metrics.jsonl, None if it has no lines."""
    lines = [line for line in read_metrics(run.folder) if "loss" in line]
    if not lines:
        return None
    steps, losses, rates = (
        np.array([line[key] for line in lines]) for key in ("step", "loss", "learning_rate")
    )
    return Curve(str(run.folder), steps, losses, rates)


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """At most `points` points: the mean loss of each stretch, with the step and the rate at its
    end."""
    if len(curve.steps) <= points:
        return curve
    ends = np.linspace(0, len(curve.steps), points + 1).astype(int)
    losses = np.add.reduceat(curve.losses, ends[:-1]) / np.diff(ends)
    rates = None if curve.rates is None else curve.rates[ends[1:] - 1]
    return Curve(curve.label, curve.steps[ends[1:] - 1], losses, rates)


def loss_png(curves: Sequence[Curve]) -> bytes:
    """Loss over steps, and below it the learning rate, of all curves in the same axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for curve in map(thinned, curves):
        (line,) = loss.plot(curve.steps, curve.losses, linewidth=1, label=curve.label)
        if curve.rates is not None:
            rate.step(curve.steps, curve.rates, where="pre", color=line.get_color(), linewidth=1)
    loss.set(ylabel="loss")
    loss.legend()
    rate.set(xlabel="optimizer step", ylabel="learning rate", yscale="log")
    for axes in (loss, rate):
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for a wrong argument or file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        help="a table of eval/report/published.yaml (default: all)",
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder that holds run folders")
    parser.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="published logs for loss.png",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reproduced"), metavar="DIR", help="(default: reproduced)"
    )
    args = parser.parse_args(argv)
    try:
        names = choose_tables(args.table)
        runs = read_runs(args.runs) if args.runs else []
        tables = {name: read_rows(name, runs) for name in names}
        shown = [run for rows in tables.values() for row in rows for run in row.runs]
        curves = [
            curve
            for curve in (*map(read_log, args.logs), *map(run_curve, shown))
            if curve is not None
        ]
        files = {"tables.md": markdown(tables).encode(), "tables.csv": csv_text(tables).encode()}
        if curves:
            files["loss.png"] = loss_png(curves)
        args.out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(args.out / name) as file:
                file.write(content)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(tables))
    print("A row not run is started by the command in its config's header (tables.csv lists them).")
    print(f"{len(shown)} run(s); written: {', '.join(str(args.out / name) for name in files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
