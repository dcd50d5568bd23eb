"""Draws accuracy against compute from the finished runs of both experiments on training faster.

    python -m scripts.experiments.eighth_plot

It writes fast_training.png, and prints its points. Accuracy is that on the 6,000 pairs of LFW, as
points above the baseline, with 95 % intervals over pairs and seeds (eval/metrics/paired.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from eval.metrics.paired import Interval, accuracy_difference
from scripts._tables import show_table
from scripts.experiments._judge import right_of
from scripts.experiments.eighth import best_runs
from scripts.experiments.quarter_time import Record, read_records
from tools._cli import command

BASELINE = "baseline"
OF_QUARTER = {
    BASELINE: "multi-step SGD (baseline)",
    "fastface": "FastFace, SGD",
    "linear": "linear to zero, SGD",
}
OF_EIGHTH = {
    "reference": "linear to zero, SGD",
    "batch_64": "the same, batch 64",
    "muon_sixteenth": "Muon, batch 64",
    "muon": "Muon, batch 64",
    "muon_quarter": "Muon, batch 64",
}
STYLES = {
    "multi-step SGD (baseline)": ("s", "black"),
    "FastFace, SGD": ("^", "tab:green"),
    "linear to zero, SGD": ("v", "tab:orange"),
    "the same, batch 64": ("D", "tab:red"),
    "Muon, batch 64": ("o", "tab:blue"),
}
APART = {"linear to zero, SGD": 1.03, "FastFace, SGD": 0.97}  # so that equal shares can be seen


@dataclass(frozen=True)
class Point:
    """A row. share: its multiply-adds divided by the baseline's. above: points of accuracy."""

    name: str
    label: str
    share: float
    seeds: int
    accuracy: float
    above: Interval


def points_of(eighth: Sequence[Record], quarter: Sequence[Record]) -> list[Point]:
    """A point per row that has finished runs. ValueError if the baseline has none."""
    baseline = best_runs(quarter, BASELINE)
    if not baseline:
        raise ValueError("no finished run of the baseline; see scripts.experiments.quarter_time")
    level = _right(baseline)
    points = []
    for finished, labels in ((quarter, OF_QUARTER), (eighth, OF_EIGHTH)):
        for name, label in labels.items():
            runs = best_runs(finished, name)
            if runs:
                share = runs[0]["multiply_adds"] / baseline[0]["multiply_adds"]
                right = _right(runs)
                above = accuracy_difference(right, level)
                points.append(
                    Point(name, label, share, len(runs), 100 * float(right.mean()), above)
                )
    return points


def _right(runs: Iterable[Record]) -> np.ndarray:
    return np.stack([right_of(run["lfw"]) for run in runs])


def draw(points: Sequence[Point]) -> Figure:
    """Points of accuracy above the baseline against the share of its compute, log axis."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for label, (marker, color) in STYLES.items():
        own = [point for point in points if point.label == label]
        if not own:
            continue
        own.sort(key=lambda point: point.share)
        values = [point.above.value for point in own]
        ends = [
            [point.above.value - point.above.low for point in own],
            [point.above.high - point.above.value for point in own],
        ]
        shares = [APART.get(label, 1) * point.share for point in own]
        axis.errorbar(
            shares, values, yerr=ends, fmt=f"{marker}-", color=color, capsize=3, label=label
        )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.axhline(-1, color="gray", linewidth=0.8, linestyle="--")
    axis.set_xscale("log", base=2)
    ticks = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    axis.set_xticks(ticks, ["1/16", "1/8", "1/4", "1/2", "1"])
    axis.set_xlabel("images × multiply-adds, as a share of the baseline's")
    axis.set_ylabel("points on LFW above the baseline")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def run(
    *,
    eighth: Path = Path("docs/results/eighth"),
    quarter: Path = Path("docs/results/quarter_time"),
    images: Path = Path("docs/images"),
) -> None:
    """Draw the plot.

    eighth: folder of the finished runs of that experiment.
    quarter: the same of the quarter-time experiment.
    images: folder for the plot.
    """
    points = points_of(read_records(eighth), read_records(quarter))
    show_table(
        {
            "row": point.name,
            "share": f"{point.share:.3f}",
            "seeds": point.seeds,
            "LFW": f"{point.accuracy:.2f}",
            "above the baseline": str(point.above),
        }
        for point in points
    )
    draw(points).savefig(images / "fast_training.png", dpi=120)


main = command(run)
