"""Loss curves of our runs and of published logs: reading, thinning and drawing."""

import csv
import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.report.plots import png
from recognition.logs import read_metrics

LOG_LINE = re.compile(
    r"Loss (?P<loss>\S+) +LearningRate (?P<learning_rate>\S+) .*Global Step: (?P<step>\d+)"
)
POINTS = 1000  # of a curve in the figure


@dataclass(frozen=True)
class Curve:
    """A run's logged steps (N,), losses (N,) and, where logged, learning rates (N,)."""

    label: str
    steps: np.ndarray
    losses: np.ndarray
    lrs: np.ndarray | None


def training_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that training wrote. Evaluations write the others."""
    return [line for line in read_metrics(run) if "loss" in line]


def run_curve(run: Path) -> Curve:
    """The curve of a run's metrics.jsonl."""
    columns = ("step", "loss", "learning_rate")
    lines = training_lines(run)
    return Curve(str(run), *(np.array([line[key] for line in lines]) for key in columns))


def read_log(path: Path) -> Curve:
    """A published log, labeled by the name of its file.

    A file named .log or .txt is a log of arcface_torch or FastFace. Any other is a CSV with columns
    step, loss and perhaps learning_rate. Both may be gzipped and named .gz. Raises ValueError or
    OSError if the file cannot be read or holds no steps.
    """
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
    columns = sorted(map(str, rows[0])) if rows else []
    if not {"step", "loss"} <= set(columns):
        raise ValueError(
            f"{path}: the columns are {columns}, expected step, loss and learning_rate"
        )

    def column(key: str) -> np.ndarray:
        return np.array([float(row[key]) for row in rows])

    try:
        lrs = column("learning_rate") if "learning_rate" in columns else None
        return Curve(Path(name).stem, column("step"), column("loss"), lrs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers in every line: {error}") from None


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """At most `points` points: a stretch's mean loss, and the step and learning rate at its end."""
    stretches = np.array_split(np.arange(len(curve.steps)), min(points, len(curve.steps)))
    losses = np.array([curve.losses[stretch].mean() for stretch in stretches])
    ends = [stretch[-1] for stretch in stretches]
    lrs = None if curve.lrs is None else curve.lrs[ends]
    return Curve(curve.label, curve.steps[ends], losses, lrs)


def loss_png(curves: Sequence[Curve]) -> bytes:
    """Loss over steps, and below it the learning rate, of all curves in the same axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, lr = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for curve in map(thinned, curves):
        (line,) = loss.plot(curve.steps, curve.losses, linewidth=1, label=curve.label)
        if curve.lrs is not None:
            lr.step(curve.steps, curve.lrs, where="pre", color=line.get_color(), linewidth=1)
    loss.set(ylabel="loss")
    loss.legend()
    lr.set(xlabel="optimizer step", ylabel="learning rate", yscale="log")
    for axes in (loss, lr):
        axes.grid(alpha=0.3)
    return png(figure, dpi=120)
