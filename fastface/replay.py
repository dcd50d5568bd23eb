"""Replays a log of losses through a scheduler: when would it have changed the rate?"""

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
    """A change of the rate: after the loss of `step`, multiplied by `factor`, to `rate`."""

    step: int
    factor: float
    rate: float


@dataclass(frozen=True)
class Trace:
    """A replayed run: every change, and the state after each logged step for a plot."""

    changes: list[Change]
    steps: list[int]
    losses: list[float]
    signals: list[float | None]
    thresholds: list[float]
    rates: list[float]


def read_losses(path: str | Path) -> list[tuple[int, float]]:
    """Reads (step, loss) rows, losses of any value, from a CSV with columns `step` and `loss`,
    gzipped if named .gz.

    Raises:
        OSError, ValueError: the file cannot be read or is no such table, or its steps do not rise.
    """
    rows: list[tuple[int, float]] = []
    open_text = gzip.open if str(path).endswith(".gz") else open
    with open_text(path, "rt", encoding="utf-8", newline="") as file:
        try:
            table = csv.DictReader(file)
            columns = table.fieldnames or []
            if not {"step", "loss"} <= set(columns):
                raise ValueError(
                    f"{path}: the columns are {str(list(columns))[:100]}: expected step and loss among them"
                )
            for row in table:
                rows.append(_read_row(row, f"{path}, line {table.line_num}"))
                if len(rows) > 1 and rows[-1][0] <= rows[-2][0]:
                    raise ValueError(
                        f"{path}, line {table.line_num}: step {rows[-1][0]} after {rows[-2][0]}: expected rising steps"
                    )
        except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged or no CSV file: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no rows: expected at least one step and loss")
    return rows


def _read_row(row: dict[str, str], where: str) -> tuple[int, float]:
    try:
        return int(row["step"]), float(row["loss"])
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: step {row['step']!r}, loss {row['loss']!r}: expected a whole number and a number"
        ) from None


def every_step(rows: list[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """All steps from the first row to the last, interpolating linearly between two rows, which must
    be finite."""
    for (step, loss), (next_step, next_loss) in pairwise(rows):
        slope = (next_loss - loss) / (next_step - step)
        for between in range(step, next_step):
            yield between, loss + slope * (between - step)
    yield rows[-1]


def replay(rows: list[tuple[int, float]], scheduler: LossScheduler) -> Trace:
    """Steps the scheduler through all losses. Rows with a NaN or infinite loss are interpolated
    over."""
    finite = [row for row in rows if math.isfinite(row[1])]
    if not finite:
        raise ValueError("none of the losses is finite: expected at least one")
    logged = {step for step, _ in finite}
    trace = Trace(changes=[], steps=[], losses=[], signals=[], thresholds=[], rates=[])
    scale = scheduler.scale
    for step, loss in every_step(finite):
        scheduler.step(loss)
        rate = float(scheduler.get_last_lr()[0])
        if scheduler.scale != scale:
            trace.changes.append(Change(step=step, factor=scheduler.scale / scale, rate=rate))
            scale = scheduler.scale
        if step in logged:
            trace.steps.append(step)
            trace.losses.append(loss)
            trace.signals.append(scheduler.signal)
            trace.thresholds.append(scheduler.threshold)
            trace.rates.append(rate)
    return trace
