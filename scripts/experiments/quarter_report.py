"""Tables and figures of the quarter-time experiment, from the runs that are finished.

    python -m scripts.experiments.quarter_report [--results docs/results/quarter_time] [--images
    docs/images]

Writes table.md and differences.csv beside the runs' JSON files, and
quarter_time_{curves,accuracy,sensitivity}.png. Differences are between rows on the same test pairs,
in points of accuracy, with the 95 % interval of 2,000 bootstrap resamples of the pairs and, where a
row has several, of its seeds.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.files import atomic_write
from scripts.experiments.quarter_time import all_runs

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
# row of part `doubled` with twice the part's epochs
DOUBLED = {
    "a": "train",
    "c": "train_again",
    "b": "view1",
}

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a table: its runs, one a seed, and which test pairs each got right, bool (seeds,
    P)."""

    name: str
    runs: list[Record]
    right: np.ndarray

    @property
    def accuracy(self) -> float:
        return statistics.fmean(run["accuracy"] for run in self.runs)


def read_runs(results: Path) -> list[Record]:
    """The finished runs, in the order of the experiment."""
    order = {run.name: place for place, run in enumerate(all_runs())}
    runs = [json.loads(path.read_text()) for path in results.glob("*.json")]
    return sorted(runs, key=lambda run: order[f"{run['part']}_{run['row']}_{run['seed']}"])


def rows_of(runs: Sequence[Record], part: str) -> list[Row]:
    """The rows of a part, its baseline first, a run for each seed. Part c takes part a's doubled
    baseline."""
    named: dict[str, list[Record]] = {}
    if part == "c":
        named["baseline"] = [
            run for run in runs if (run["part"], run["row"]) == ("doubled", DOUBLED["a"])
        ]
    for run in runs:
        if run["part"] == part:
            named.setdefault(run["row"], []).append(run)
    if len(named) == 1 and part == "c":
        return []
    return [
        Row(name, kept, np.stack([right_of(run) for run in kept])) for name, kept in named.items()
    ]


def right_of(run: Record) -> np.ndarray:
    """Which test pairs the run got right, bool (P,)."""
    packed = np.frombuffer(base64.b64decode(run["right"]), np.uint8)
    return np.unpackbits(packed)[: run["pairs"]].astype(bool)


def difference(one: Row, other: Row, seed: int = 0) -> tuple[float, float, float]:
    """Points of accuracy of `one` above `other`, and the ends of the 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    pairs = one.right.shape[1]
    # (R,P): how often a pair is drawn
    weights = rng.multinomial(pairs, np.full(pairs, 1 / pairs), RESAMPLES) / pairs
    drawn = []
    for row in (one, other):
        seeds = len(row.right)
        share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
        drawn.append(((weights @ row.right.T.astype(float)) * share).sum(1))
    low, high = np.percentile(100 * (drawn[0] - drawn[1]), [2.5, 97.5])
    return 100 * float(one.right.mean() - other.right.mean()), float(low), float(high)


def show(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"


def mean(row: Row, key: str) -> float:
    return statistics.fmean(run[key] for run in row.runs)


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown lines: one a row, with its differences from the baseline and from FastFace."""
    by_name = {row.name: row for row in rows}
    against = [name for name in ("baseline", "fastface") if name in by_name]
    heads = [
        "schedule",
        "seeds",
        "images",
        "steps",
        "CPU min",
        "last loss",
        "decays",
        "accuracy %, each seed",
    ]
    heads += [
        f"points above {'the baseline' if name == 'baseline' else 'FastFace'} [95 %]"
        for name in against
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        run = row.runs[0]
        seeds = ", ".join(f"{r['accuracy']:.2f}" for r in row.runs)
        decays = ", ".join("–" if r["decays"] is None else f"{r['decays']:.0f}" for r in row.runs)
        cells = [
            LABELS.get(row.name, row.name),
            len(row.runs),
            f"{run['images']:,}",
            f"{run['steps']:,}",
        ]
        cells += [f"{mean(row, 'cpu_seconds') / 60:.1f}", f"{mean(row, 'final_loss'):.2f}", decays]
        cells += [f"**{row.accuracy:.2f}**" + (f" ({seeds})" if len(row.runs) > 1 else "")]
        cells += [
            "" if name == row.name else show(difference(row, by_name[name])) for name in against
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


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
            gain = show(difference(doubled[0], rows[0]))
            seeds = f"{len(doubled[0].runs)} seed{'s' if len(doubled[0].runs) > 1 else ''}"
            lines += [
                f"The baseline with twice the epochs, {seeds}: {doubled[0].accuracy:.2f} %, {gain} points.",
                "",
            ]
    tuned = rows_of(runs, "tune")
    if tuned:
        rates = ", ".join(f"{row.name.removeprefix('lr')}: {row.accuracy:.2f} %" for row in tuned)
        lines += [f"Base rate, chosen on pairsDevTrain (2,200 pairs) with multi-step: {rates}.", ""]
    varied = rows_of(runs, "sensitivity")
    if varied:
        lines += ["**Sensitivity**", "", *table(varied), ""]
    return "\n".join(lines)


def differences(runs: Sequence[Record]) -> str:
    """CSV: every pair of rows of a part."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["part", "row", "other", "points", "low", "high"])
    for part in TESTS:
        for one, other in combinations(rows_of(runs, part), 2):
            writer.writerow(
                [part, one.name, other.name, *(f"{value:.3f}" for value in difference(one, other))]
            )
    return text.getvalue()


def draw_curves(runs: Sequence[Record]) -> Figure:
    """Loss and rate over images of part c's runs."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True)
    for row in rows_of(runs, "c"):
        run = row.runs[0]
        curve = run["curve"]
        images = np.array(curve["step"]) * run["images"] / run["steps"]
        style = (
            {"color": "black", "linewidth": 1.5} if row.name == "baseline" else {"linewidth": 0.9}
        )
        loss.plot(images, curve["loss"], label=LABELS[row.name], **style)
        rate.plot(images, curve["learning_rate"], drawstyle="steps-post", **style)
    loss.set_ylabel("training loss")
    loss.legend(fontsize=8)
    rate.set_ylabel("learning rate")
    rate.set_yscale("log")
    rate.set_ylim(bottom=1e-6)
    rate.set_xlabel("images seen")
    for axis in (loss, rate):
        axis.grid(alpha=0.3)
    return figure


def draw_accuracy(runs: Sequence[Record]) -> Figure:
    """Accuracy of every row above the baseline, with its interval; dots are seeds."""
    parts = [part for part in TESTS if rows_of(runs, part)]
    figure = Figure(figsize=(9, 1 + 3 * len(parts)), layout="constrained")
    for part, axis in zip(
        parts, np.ravel(figure.subplots(len(parts), 1, squeeze=False)), strict=True
    ):
        rows = rows_of(runs, part)
        baseline = rows[0]
        for place, row in enumerate(rows[1:]):
            points, low, high = difference(row, baseline)
            axis.errorbar(
                points,
                place,
                xerr=[[points - low], [high - points]],
                fmt="o",
                color="tab:blue",
                capsize=3,
            )
            seeds = [run["accuracy"] - baseline.accuracy for run in row.runs]
            axis.plot(seeds, [place] * len(seeds), "|", color="black", markersize=8)
        name_rows(axis, [LABELS[row.name] for row in rows[1:]])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.axvline(-1, color="gray", linewidth=0.8, linestyle="--")
        axis.set_title(
            f"part {part}: {TESTS[part]}; baseline {baseline.accuracy:.2f} %", fontsize=10
        )
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
    for place, row in enumerate(rows):
        points, low, high = difference(row, usual) if row is not usual else (0.0, 0.0, 0.0)
        axis.errorbar(
            points,
            place,
            xerr=[[points - low], [high - points]],
            fmt="o",
            color="tab:blue",
            capsize=3,
        )
        decays = row.runs[0]["decays"]
        axis.annotate(
            f"{decays:.0f} decays",
            (points, place),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=7,
        )
    name_rows(axis, [row.name for row in rows])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel(f"points above the usual constants ({usual.accuracy:.2f} %)")
    return figure


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("docs/results/quarter_time"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    runs = read_runs(args.results)
    if not runs:
        parser.error(f"{args.results}: no finished run in it; see scripts.experiments.quarter_time")
    text = report(runs)
    print(text)
    for name, content in (("table.md", text), ("differences.csv", differences(runs))):
        with atomic_write(args.results / name, "w") as file:
            file.write(content)
    drawn = {"curves": draw_curves, "accuracy": draw_accuracy, "sensitivity": draw_sensitivity}
    needed = {"curves": "c", "accuracy": "a", "sensitivity": "sensitivity"}
    for name, draw in drawn.items():
        if rows_of(runs, needed[name]):
            draw(runs).savefig(args.images / f"quarter_time_{name}.png", dpi=120)


if __name__ == "__main__":
    main()
