"""Replays a log of losses through a scheduler: when would it have changed the learning rate?"""

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fastface.schedulers import LossScheduler


@dataclass(frozen=True)
class Change:
    """After the loss of `step` the learning rate was multiplied by `factor` and became `lr`."""

    step: int
    factor: float
    lr: float


@dataclass(frozen=True)
class Trace:
    """A replayed run: all changes, and the state after each logged step, for a plot."""

    changes: list[Change]
    steps: list[int]
    losses: list[float]
    signals: list[float | None]
    thresholds: list[float]
    lrs: list[float]


def read_losses(path: str | Path) -> list[tuple[int, float]]:
    """(step, loss) rows of a CSV with columns `step` and `loss`, gzipped if its name ends in .gz.

    Losses may have any value, NaN and infinity included.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged or not such a table, or its steps do not rise.
    """
    rows: list[tuple[int, float]] = []
    open_text = gzip.open if str(path).endswith(".gz") else open
    with open_text(path, "rt", encoding="utf-8", newline="") as file:
        try:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or [])
            if not {"step", "loss"} <= set(columns):
                raise ValueError(
                    f"{path}: the columns are {str(columns)[:100]}: "
                    "expected step and loss among them"
                )
            for row in table:
                before = rows[-1][0] if rows else None
                rows.append(_parse(row, before, f"{path}, line {table.line_num}"))
        except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged or no CSV file: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no rows: expected at least one step and loss")
    return rows


def _parse(row: dict[str, str], before: int | None, where: str) -> tuple[int, float]:
    """(step, loss) of a row; `before` is the step of the row before it."""
    try:
        step, loss = int(row["step"]), float(row["loss"])
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: step {row['step']!r}, loss {row['loss']!r}: "
            "expected a whole number and a number"
        ) from None
    if before is not None and step <= before:
        raise ValueError(f"{where}: step {step} after {before}: expected rising steps")
    return step, loss


def every_step(rows: list[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """(step, loss) of all steps from the first row to the last.

    Losses between two rows are interpolated linearly. The losses of the rows must be finite.
    """
    for (step, loss), (next_step, next_loss) in pairwise(rows):
        slope = (next_loss - loss) / (next_step - step)
        for between in range(step, next_step):
            yield between, loss + slope * (between - step)
    yield rows[-1]


def replay(rows: list[tuple[int, float]], scheduler: LossScheduler) -> Trace:
    """Steps the scheduler through all losses; NaN and infinite losses are interpolated."""
    finite = [row for row in rows if math.isfinite(row[1])]
    if not finite:
        raise ValueError("none of the losses is finite: expected at least one")
    logged = {step for step, _ in finite}
    trace = Trace(changes=[], steps=[], losses=[], signals=[], thresholds=[], lrs=[])
    scale = scheduler.scale
    for step, loss in every_step(finite):
        scheduler.step(loss)
        lr = float(scheduler.get_last_lr()[0])
        if scheduler.scale != scale:
            trace.changes.append(Change(step=step, factor=scheduler.scale / scale, lr=lr))
            scale = scheduler.scale
        if step in logged:
            trace.steps.append(step)
            trace.losses.append(loss)
            trace.signals.append(scheduler.signal)
            trace.thresholds.append(scheduler.threshold)
            trace.lrs.append(lr)
    return trace
