"""Makes the tables and figures of the quarter-time experiment from the runs that are finished.

    python -m scripts.experiments.quarter_report

It writes table.md and differences.csv beside the JSON files of the runs, and
quarter_time_{curves,accuracy,sensitivity}.png. Differences are between rows on the same test pairs,
in points of accuracy. Their 95 % intervals come from 2,000 bootstrap resamples of the pairs and, if
a row has several seeds, of its seeds.
"""

import base64
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.files import atomic_write
from scripts._tables import csv_table, markdown_table
from scripts.experiments.quarter_time import all_runs
from tools._cli import command

RESAMPLES = 2000
LABELS = {
    "baseline": "multi-step, four times the images",
    "fastface": "FastFace, for_horizon",
    "fastface_published": "FastFace, published constants",
    "moving_haar": "Moving Haar, window 2 % of the run",
    "moving_haar_wide": "Moving Haar, window 10 %",
    "multi_step": "multi-step",
    "polynomial": "polynomial",
    "cosine": "cosine",
    "constant": "constant",
}
TESTS = {
    "a": "train.rec → the 6,000 LFW pairs",
    "c": "as part a, everything twice as long",
    "b": "train.rec and View 1 → pairsDevTest, 1,000 pairs",
}
# The row of part `doubled` with twice the part's epochs.
DOUBLED = {"a": "train", "c": "train_again", "b": "view1"}

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a table: a run per seed, and whether each classified a pair correctly.

    right: bool (seeds, P).
    """

    name: str
    runs: list[Record]
    right: np.ndarray

    def mean(self, key: str) -> float:
        return statistics.fmean(run[key] for run in self.runs)


def read_runs(results: Path) -> list[Record]:
    """The finished runs, in the order of the experiment."""
    order = {run.name: place for place, run in enumerate(all_runs())}
    runs = [json.loads(path.read_text()) for path in results.glob("*.json")]
    return sorted(runs, key=lambda run: order[f"{run['part']}_{run['row']}_{run['seed']}"])


def rows_of(runs: Sequence[Record], part: str) -> list[Row]:
    """The rows of a part with their runs, the baseline first.

    The baseline of part c is the doubled one of part a.
    """
    named: dict[str, list[Record]] = {}
    if part == "c":
        doubled = ("doubled", DOUBLED["a"])
        named["baseline"] = [run for run in runs if (run["part"], run["row"]) == doubled]
    for run in runs:
        if run["part"] == part:
            named.setdefault(run["row"], []).append(run)
    if len(named) == 1 and part == "c":
        return []
    return [Row(name, kept, np.stack([*map(right_of, kept)])) for name, kept in named.items()]


def right_of(run: Record) -> np.ndarray:
    """Which test pairs the run got right, bool (P,)."""
    packed = np.frombuffer(base64.b64decode(run["right"]), np.uint8)
    return np.unpackbits(packed)[: run["pairs"]].astype(bool)


def difference(one: Row, other: Row, seed: int = 0) -> tuple[float, float, float]:
    """(points of accuracy of `one` above `other`, both ends of the 95 % bootstrap interval)."""
    rng = np.random.default_rng(seed)

    def resampled(count: int) -> np.ndarray:
        """How often each of `count` things is drawn, as a share (RESAMPLES, count)."""
        return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count

    # Both rows are tested on the same drawn pairs. Seeds are drawn for each row separately.
    pairs = resampled(one.right.shape[1])
    drawn = [
        ((pairs @ row.right.T.astype(float)) * resampled(len(row.right))).sum(1)
        for row in (one, other)
    ]
    low, high = np.percentile(100 * (drawn[0] - drawn[1]), [2.5, 97.5])
    return 100 * float(one.right.mean() - other.right.mean()), float(low), float(high)


def show(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown lines, one per row, with its differences from the baseline and from FastFace."""
    by_name = {row.name: row for row in rows}
    others = {"baseline": "the baseline", "fastface": "FastFace"}
    cells = []
    for row in rows:
        run = row.runs[0]
        seeds = ", ".join(f"{r['accuracy']:.2f}" for r in row.runs)
        decays = ("–" if r["decays"] is None else f"{r['decays']:.0f}" for r in row.runs)
        cells.append(
            {
                "schedule": LABELS.get(row.name, row.name),
                "seeds": len(row.runs),
                "images": f"{run['images']:,}",
                "steps": f"{run['steps']:,}",
                "CPU min": f"{row.mean('cpu_seconds') / 60:.1f}",
                "last loss": f"{row.mean('final_loss'):.2f}",
                "decays": ", ".join(decays),
                "accuracy %, each seed": f"**{row.mean('accuracy'):.2f}**"
                + (f" ({seeds})" if len(row.runs) > 1 else ""),
            }
        )
        for name, words in others.items():
            if name in by_name:
                apart = "" if name == row.name else show(difference(row, by_name[name]))
                cells[-1][f"points above {words} [95 %]"] = apart
    return list(markdown_table(cells))


def report(runs: Sequence[Record]) -> str:
    """All tables as Markdown."""
    lines: list[str] = []
    for part, title in TESTS.items():
        rows = rows_of(runs, part)
        if not rows:
            continue
        lines += [f"**Part {part}: {title}**", "", *table(rows), ""]
        doubled = [row for row in rows_of(runs, "doubled") if row.name == DOUBLED[part]]
        if doubled and rows[0].name == "baseline":
            seeds = len(doubled[0].runs)
            words = f"The baseline with twice the epochs, {seeds} seed{'s' if seeds > 1 else ''}"
            gain = show(difference(doubled[0], rows[0]))
            lines += [f"{words}: {doubled[0].mean('accuracy'):.2f} %, {gain} points.", ""]
    if tuned := rows_of(runs, "tune"):
        rates = ", ".join(
            f"{row.name.removeprefix('lr')}: {row.mean('accuracy'):.2f} %" for row in tuned
        )
        lines += [f"Base rate, chosen on pairsDevTrain (2,200 pairs) with multi-step: {rates}.", ""]
    if varied := rows_of(runs, "sensitivity"):
        lines += ["**Sensitivity**", "", *table(varied), ""]
    return "\n".join(lines)


def differences(runs: Sequence[Record]) -> Iterator[dict[str, str]]:
    """Every pair of rows of a part."""
    for part in TESTS:
        for one, other in combinations(rows_of(runs, part), 2):
            points, low, high = (f"{value:.3f}" for value in difference(one, other))
            yield {
                "part": part,
                "row": one.name,
                "other": other.name,
                "points": points,
                "low": low,
                "high": high,
            }


def draw_curves(runs: Sequence[Record]) -> Figure:
    """Loss and learning rate of part c's runs over the images seen."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    loss, lr = figure.subplots(2, 1, sharex=True)
    for row in rows_of(runs, "c"):
        run = row.runs[0]
        curve = run["curve"]
        images = np.array(curve["step"]) * run["images"] / run["steps"]
        style: dict[str, Any] = {"linewidth": 0.9}
        if row.name == "baseline":
            style = {"color": "black", "linewidth": 1.5}
        loss.plot(images, curve["loss"], label=LABELS[row.name], **style)
        lr.plot(images, curve["learning_rate"], drawstyle="steps-post", **style)
    loss.set(ylabel="training loss")
    loss.legend(fontsize=8)
    lr.set(ylabel="learning rate", yscale="log", xlabel="images seen")
    lr.set_ylim(bottom=1e-6)
    for axis in (loss, lr):
        axis.grid(alpha=0.3)
    return figure


def draw_accuracy(runs: Sequence[Record]) -> Figure:
    """Points of accuracy of every row above the baseline, with intervals. Ticks are seeds."""
    parts = [part for part in TESTS if rows_of(runs, part)]
    figure = Figure(figsize=(9, 1 + 3 * len(parts)), layout="constrained")
    axes = np.ravel(figure.subplots(len(parts), 1, squeeze=False))
    for part, axis in zip(parts, axes, strict=True):
        baseline, *rows = rows_of(runs, part)
        draw_intervals(axis, rows, baseline)
        for place, row in enumerate(rows):
            seeds = [run["accuracy"] - baseline.mean("accuracy") for run in row.runs]
            axis.plot(seeds, [place] * len(seeds), "|", color="black", markersize=8)
        axis.axvline(-1, color="gray", linewidth=0.8, linestyle="--")
        title = f"part {part}: {TESTS[part]}; baseline {baseline.mean('accuracy'):.2f} %"
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(
            "points above the baseline at a quarter of its images (dashed: one point below)"
        )
    return figure


def draw_sensitivity(runs: Sequence[Record]) -> Figure:
    """Accuracy with one constant of FastFace changed at a time."""
    rows = rows_of(runs, "sensitivity")
    figure = Figure(figsize=(8, 1 + 0.4 * len(rows)), layout="constrained")
    axis = figure.subplots()
    usual = rows[0]
    for place, points in enumerate(draw_intervals(axis, rows, usual)):
        text = f"{rows[place].runs[0]['decays']:.0f} decays"
        axis.annotate(text, (points, place), (0, 6), textcoords="offset points", fontsize=7)
    axis.set_xlabel(f"points above the usual constants ({usual.mean('accuracy'):.2f} %)")
    return figure


def draw_intervals(axis: Axes, rows: Sequence[Row], other: Row) -> list[float]:
    """Draw the difference of each row from `other` with its interval, and return the differences.

    The difference of `other` itself is 0.
    """
    drawn = []
    for place, row in enumerate(rows):
        points, low, high = (0.0, 0.0, 0.0) if row is other else difference(row, other)
        ends = [[points - low], [high - points]]
        axis.errorbar(points, place, xerr=ends, fmt="o", color="tab:blue", capsize=3)
        drawn.append(points)
    axis.set_yticks(range(len(rows)), [LABELS.get(row.name, row.name) for row in rows])
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    axis.axvline(0, color="black", linewidth=0.8)
    return drawn


FIGURES = {  # name -> (the part that it needs, how it is drawn)
    "curves": ("c", draw_curves),
    "accuracy": ("a", draw_accuracy),
    "sensitivity": ("sensitivity", draw_sensitivity),
}


def run(
    *, results: Path = Path("docs/results/quarter_time"), images: Path = Path("docs/images")
) -> None:
    """Write all tables and figures.

    results: folder of the finished runs, for the tables too.
    images: folder for the figures.
    """
    runs = read_runs(results)
    if not runs:
        raise ValueError(f"{results}: no finished run in it; see scripts.experiments.quarter_time")
    text = report(runs)
    print(text)
    tables = {"table.md": text, "differences.csv": csv_table([*differences(runs)])}
    for name, content in tables.items():
        with atomic_write(results / name, "w") as file:
            file.write(content)
    for name, (part, draw) in FIGURES.items():
        if rows_of(runs, part):
            draw(runs).savefig(images / f"quarter_time_{name}.png", dpi=120)


main = command(run)
