"""Differences between models on the same pairs, with 95 % intervals and a sentence for each.

Each ROW is a run folder, or a folder of results that `--out` wrote. The first ROW is the one that
the others are compared with. Runs of one model with several seeds are one row: give their folders
with commas between them, and perhaps a name before them. An example:

    python -m eval compare old=runs/old_0,runs/old_1 new=runs/new_0,runs/new_1

The intervals come from 2,000 resamples of the pairs, and of the seeds of each row
(eval/metrics/paired.py). A row with one folder has an interval that holds for this run alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data.options import Range
from data.text import markdown_text, one_line
from eval.metrics import paired
from eval.metrics import verification as metrics
from eval.metrics.paired import Interval
from eval.report.result import Scores
from eval.report.scores import read_scores

Far = Annotated[float, Range(above=0, at_most=1)]


@dataclass(frozen=True)
class Row:
    """One model: its name, and the scores of each of its seeds by list of pairs."""

    name: str
    seeds: Sequence[dict[str, Scores]]


def compare(
    row: tuple[str, ...] = (),
    *,
    lists: tuple[str, ...] = (),
    far: tuple[Far, ...] = (0.01, 0.001),
) -> dict[str, Any]:
    """Compare the models of several folders of results on the same pairs.

    row: FOLDER, or [NAME=]FOLDER,FOLDER,… for the seeds of one model; two or more.
    lists: names of the lists of pairs to compare on, instead of all that every folder has.
    far: false accept rates at which TAR is compared.
    """
    rows = [read_row(text) for text in row]
    if len(rows) < 2 or len({one.name for one in rows}) < len(rows):
        raise ValueError(
            f"found {', '.join(one.name for one in rows) or 'no row'}; give two or more rows with "
            "different names, such as `python -m eval compare runs/a runs/b`"
        )
    record: dict[str, Any] = {}
    for name in lists or common_lists(rows):
        differences, figures = compare_list(rows, name, far)
        for line in lines_of(name, rows, figures, differences):
            print(line)
        for rate in far:
            if _tar(rate) not in figures[0]:
                print(f"- No {_tar(rate)}: the list has too few impostor pairs for it.\n")
        record[name] = {
            "pairs": len(scores_of(rows[0], name)[0].same),
            "rows": {
                one.name: {"seeds": len(one.seeds), **found}
                for one, found in zip(rows, figures, strict=True)
            },
            "differences": [
                {
                    "row": other,
                    "from": rows[0].name,
                    "figure": figure,
                    "points": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "shown": interval.shown,
                }
                for other, figure, interval in differences
            ],
        }
    return record


def read_row(text: str) -> Row:
    """A row from `FOLDER` or `[NAME=]FOLDER,FOLDER,…`; a folder of the whole name goes first."""
    if text and Path(text).is_dir():
        return Row(text, [read_scores(text)])
    name, given, rest = text.partition("=")
    folders = (rest if given else text).split(",")
    for folder in folders:
        if not folder or not Path(folder).is_dir():
            raise FileNotFoundError(
                f"{folder or text}: no such folder; expected FOLDER or [NAME=]FOLDER,FOLDER,…"
            )
    return Row(name, [read_scores(folder) for folder in folders])


def common_lists(rows: Sequence[Row]) -> list[str]:
    """The lists of pairs that every folder has. Others are named in a printed line."""
    folders = [scores for row in rows for scores in row.seeds]
    everywhere = [name for name in folders[0] if all(name in scores for scores in folders)]
    rest = sorted({name for scores in folders for name in scores} - set(everywhere))
    if not everywhere:
        raise ValueError(
            f"no list of pairs is in every folder; found {', '.join(map(one_line, rest)) or 'none'}"
        )
    if rest:
        print(f"Not in every folder, so not compared: {', '.join(map(one_line, rest))}.\n")
    return everywhere


def scores_of(row: Row, name: str) -> list[Scores]:
    """The scores of a row's seeds on one list."""
    for scores in row.seeds:
        if name not in scores:
            known = ", ".join(map(one_line, scores)) or "none"
            raise ValueError(f"{row.name}: no scores of {one_line(name)}; it has {known}")
    return [scores[name] for scores in row.seeds]


def compare_list(
    rows: Sequence[Row], name: str, fars: Sequence[float]
) -> tuple[list[tuple[str, str, Interval]], list[dict[str, float]]]:
    """(row, figure, difference from the first row) of one list, and the figures of each row."""
    scores = [scores_of(row, name) for row in rows]
    first = scores[0][0]
    for row, found in zip(rows, scores, strict=True):
        for one in found:
            if one.digest != first.digest or not np.array_equal(one.same, first.same):
                raise ValueError(
                    f"{one_line(name)}: {row.name} has other pairs than {rows[0].name}; evaluate "
                    "all of them on one list"
                )
    impostors = int(np.count_nonzero(~first.same))
    kinds = {"accuracy": accuracy, "AUC": auc} | {
        _tar(far): partial(tar, far=far) for far in fars if metrics.allowed(far, impostors)
    }
    measured = {
        kind: [paired.resample([figure(one) for one in found], first.same) for found in scores]
        for kind, figure in kinds.items()
    }
    differences = [
        (row.name, kind, paired.difference(found[place], found[0]))
        for place, row in enumerate(rows)
        if place
        for kind, found in measured.items()
    ]
    figures = [
        {kind: float(found[place][:, 0].mean()) for kind, found in measured.items()}
        for place in range(len(rows))
    ]
    return differences, figures


def accuracy(scores: Scores) -> paired.Figure:
    """Of the ten-fold protocol."""
    return paired.accuracy(metrics.right_decisions(scores.distances, scores.same))


def auc(scores: Scores) -> paired.Figure:
    return paired.auc(scores.distances, scores.same)


def tar(scores: Scores, far: float) -> paired.Figure:
    return paired.tar_at_far(scores.distances, scores.same, far)


def lines_of(
    name: str,
    rows: Sequence[Row],
    figures: Sequence[dict[str, float]],
    differences: Sequence[tuple[str, str, Interval]],
) -> Iterator[str]:
    """A table of the figures of one list, in percent, and a sentence for each difference."""
    heads = ["row", "seeds", *figures[0]]
    cells = [
        [row.name, str(len(row.seeds)), *(f"{value:.2f}" for value in found.values())]
        for row, found in zip(rows, figures, strict=True)
    ]
    yield f"**{markdown_text(name)}**, {len(scores_of(rows[0], name)[0].same):,} pairs\n"
    for line in (heads, ["---"] * len(heads), *cells):
        yield f"| {' | '.join(map(markdown_text, line))} |"
    yield ""
    for other, figure, interval in differences:
        yield f"- {figure}: {sentence(one_line(other), one_line(rows[0].name), interval)}"
    if any(len(row.seeds) == 1 for row in rows):
        yield "- A row with one seed: the intervals do not tell what another seed of it would give."
    yield ""


def sentence(one: str, other: str, interval: Interval) -> str:
    """What is known of the difference of `one` from `other`."""
    if interval.value == interval.low == interval.high == 0:
        return f"{one} and {other} are equal in every resample"
    worse = interval.value < 0
    low, high = (-interval.high, -interval.low) if worse else (interval.low, interval.high)
    points, low_end, high_end = map(_points, (abs(interval.value), low, high))
    return (
        f"{one} is {'worse' if worse else 'better'} than {other} by {points} points, "
        f"95 % interval {low_end} to {high_end}: {'shown' if interval.shown else 'not shown'}"
    )


def _tar(far: float) -> str:
    return f"TAR at FAR {far:g}"


def _points(value: float) -> str:
    """Two decimals and a minus sign; no sign for what is rounded to 0."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
