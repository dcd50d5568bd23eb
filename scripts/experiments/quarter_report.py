"""Makes the tables and figures of the quarter-time experiment from the runs that are finished.

    python -m scripts.experiments.quarter_report

It writes table.md and differences.csv beside the JSON files of the runs, and
quarter_time_{curves,accuracy}.png. A row counts as tested when its peak learning rate is chosen,
which is once all rates of its grid are finished. Differences are between rows on the 6,000 pairs of
LFW, in points of accuracy, with 95 % intervals over pairs and seeds (eval/metrics/paired.py).
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data.files import atomic_write
from eval.metrics.paired import Interval, accuracy_difference
from scripts._tables import csv_table, markdown_table
from scripts.experiments._judge import right_of
from scripts.experiments.quarter_time import (
    RATES,
    SEEDS,
    Record,
    chosen_rate,
    read_records,
    schedules,
    tuned_rates,
)
from tools._cli import command

LABELS = {
    "baseline": "multi-step, four times the images",
    "doubled": "multi-step, eight times the images",
    "fastface": "FastFace, `for_horizon`",
    "fastface_published": "FastFace, published constants",
    "moving_haar": "Moving Haar",
    "multi_step": "multi-step",
    "polynomial": "polynomial, power 2",
    "linear": "linear to zero",
    "trapezoid": "trapezoid (WSD)",
    "cosine": "cosine",
    "constant": "constant",
}


@dataclass(frozen=True)
class Row:
    """A schedule with its chosen peak rate: a finished run per seed.

    right: bool (seeds, 6000), whether each judged a pair of LFW correctly.
    """

    name: str
    runs: Sequence[Record]
    right: np.ndarray

    def mean(self, key: str) -> float:
        return statistics.fmean(run[key] for run in self.runs)

    @property
    def accuracies(self) -> list[float]:
        return [run["lfw"]["accuracy"] for run in self.runs]


def rows_of(finished: Sequence[Record]) -> list[Row]:
    """The rows whose rate is chosen, the best first."""
    chosen = {name: chosen_rate(tuned_rates(finished, name)) for name in schedules()}
    chosen["doubled"] = chosen["baseline"]
    rows = []
    for name, rate in chosen.items():
        own = [run for run in finished if (run["row"], run["rate"]) == (name, rate)]
        if own:
            own.sort(key=lambda run: int(run["seed"]))
            rows.append(Row(name, own, np.stack([right_of(run["lfw"]) for run in own])))
    return sorted(rows, key=lambda row: -statistics.fmean(row.accuracies))


def tuning_table(finished: Sequence[Record]) -> Iterator[dict[str, str]]:
    """Accuracy on View 1 of every schedule with each peak rate, seed 0; the chosen one is bold."""
    seen = {run["rate"] for run in finished if run["seed"] == 0 and run["row"] != "doubled"}
    rates = sorted({*RATES, *seen})
    for name in schedules():
        if name == "doubled":
            continue
        tuned = tuned_rates(finished, name)
        chosen = chosen_rate(tuned)
        cells = {
            f"{rate:g}": (f"**{tuned[rate]:.2f}**" if rate == chosen else f"{tuned[rate]:.2f}")
            if rate in tuned
            else "not run"
            if rate in RATES
            else ""
            for rate in rates
        }
        yield {"schedule": LABELS[name], **cells}


def test_table(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    """One line per row, with its differences from the baseline and from FastFace."""
    by_name = {row.name: row for row in rows}
    for row in rows:
        run = row.runs[0]
        decays = ("–" if one["decays"] is None else f"{one['decays']:.0f}" for one in row.runs)
        seeds = ", ".join(f"{accuracy:.2f}" for accuracy in row.accuracies)
        cells = {
            "schedule": LABELS[row.name],
            "peak rate": f"{run['rate']:g}",
            "seeds": f"{len(row.runs)} of {SEEDS.get(row.name, 5)}",
            "images": f"{run['images']:,}",
            "10¹² multiply-adds": f"{run['multiply_adds'] / 1e12:.2f}",
            "CPU min, steady": f"{row.mean('steady_cpu_seconds') / 60:.1f}",
            "last loss": f"{row.mean('final_loss'):.2f}",
            "decays": ", ".join(decays),
            "LFW accuracy %, each seed": f"**{statistics.fmean(row.accuracies):.2f}** ({seeds})",
        }
        for name, words in {"baseline": "the baseline", "fastface": "FastFace"}.items():
            apart = ""
            if name in by_name and name != row.name:
                apart = str(accuracy_difference(row.right, by_name[name].right))
            cells[f"points above {words} [95 %]"] = apart
        yield cells


def report(finished: Sequence[Record]) -> str:
    """Both tables as Markdown."""
    tuning = markdown_table(tuning_table(finished))
    lines = ["**Tune: accuracy % on the 3,200 pairs of View 1, by peak rate**", "", *tuning, ""]
    tested = [*markdown_table(test_table(rows_of(finished)))]
    lines += ["**Test: the 6,000 LFW pairs, with the chosen rates**", ""]
    lines += tested or ["No row has its whole grid finished yet."]
    starts = [
        run["cpu_seconds"] - run["steady_cpu_seconds"] for run in finished if not run["resumed"]
    ]
    if starts:
        lines += [
            "",
            f"Start and compiled code: {statistics.median(starts):.0f} s of CPU time per run, the "
            "same for every row and in no figure above.",
        ]
    return "\n".join([*lines, ""])


def differences(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    """Every pair of rows."""
    for one, other in combinations(rows, 2):
        found = accuracy_difference(one.right, other.right)
        ends = {key: f"{getattr(found, key):.3f}" for key in ("value", "low", "high")}
        yield {"row": one.name, "other": other.name, **ends}


def draw_curves(rows: Sequence[Row]) -> Figure:
    """Loss and learning rate of each row's first seed over the images seen."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    loss, lr = figure.subplots(2, 1, sharex=True)
    for row in rows:
        if row.name == "doubled":
            continue
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


def draw_accuracy(rows: Sequence[Row]) -> Figure:
    """Points of accuracy of every row above the baseline, with intervals. Ticks are seeds."""
    baseline = next(row for row in rows if row.name == "baseline")
    level = statistics.fmean(baseline.accuracies)
    others = [row for row in rows if row is not baseline]
    figure = Figure(figsize=(9, 1.5 + 0.35 * len(others)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(others):
        found: Interval = accuracy_difference(row.right, baseline.right)
        ends = [[found.value - found.low], [found.high - found.value]]
        axis.errorbar(found.value, place, xerr=ends, fmt="o", color="tab:blue", capsize=3)
        seeds = [accuracy - level for accuracy in row.accuracies]
        axis.plot(seeds, [place] * len(seeds), "|", color="black", markersize=8)
    axis.set_yticks(range(len(others)), [LABELS[row.name].replace("`", "") for row in others])
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axvline(-1, color="gray", linewidth=0.8, linestyle="--")
    axis.set_title(f"6,000 LFW pairs; baseline {level:.2f} %", fontsize=10)
    axis.set_xlabel("points above the baseline (dashed: one point below)")
    return figure


def run(
    *, results: Path = Path("docs/results/quarter_time"), images: Path = Path("docs/images")
) -> None:
    """Write all tables and figures.

    results: folder of the finished runs, for the tables too.
    images: folder for the figures.
    """
    finished = read_records(results)
    if not finished:
        raise ValueError(f"{results}: no finished run in it; see scripts.experiments.quarter_time")
    rows = rows_of(finished)
    text = report(finished)
    print(text)
    tables = {"table.md": text, "differences.csv": csv_table([*differences(rows)])}
    for name, content in tables.items():
        with atomic_write(results / name, "w") as file:
            file.write(content)
    if any(row.name == "baseline" for row in rows):
        for name, draw in {"curves": draw_curves, "accuracy": draw_accuracy}.items():
            draw(rows).savefig(images / f"quarter_time_{name}.png", dpi=120)


main = command(run)
