"""What a method of `tools.clean` leaves in its folder: an index list, a table and a page."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from data.files import atomic_write
from data.text import csv_cell, one_line
from data.types import Int64
from tools._clean_page import Scores, Suspect, page
from tools._clean_set import Chosen
from tools._faces import counted

SUBSET, TABLE, PAGE = "subset.npy", "suspects.csv", "suspects.html"
BAD_SHOWN = 5


@dataclass(frozen=True)
class Result:
    """What a method found.

    title: of the page. lines: sentences about the method and what it found. head: the columns of
    the table. rows: its lines, one per suspect, as they are needed. scores: the histogram of the
    page. suspects: those that the page shows. subset: the index list, see `kept` and `relabeled`.
    record: what `--json` prints.
    """

    title: str
    lines: Sequence[str]
    head: Sequence[str]
    rows: Iterable[Sequence[object]]
    scores: Scores
    suspects: list[Suspect]
    subset: Int64
    record: dict[str, Any]


def kept(work: Chosen, left_out: np.ndarray) -> Int64:
    """The index list without the images `left_out` (their numbers among the chosen ones)."""
    keep = np.ones(len(work), bool)
    keep[left_out] = False
    rows = work.rows[keep]
    if not work.relabeled:
        return rows
    return np.stack([rows, work.identities[work.labels[keep]]], axis=1)


def relabeled(work: Chosen, labels: np.ndarray) -> Int64:
    """The index list with new labels int64 (M,), which become 0, 1, … in their order."""
    dense = np.unique(labels, return_inverse=True)[1]
    return np.stack([work.rows, dense.astype(np.int64)], axis=1)


def write_result(result: Result, work: Chosen, folder: Path) -> dict[str, Any]:
    """Write the files, print what was found, and return the record."""
    folder.mkdir(parents=True, exist_ok=True)
    warnings = list(_warnings(work))
    shown = page(result.title, result.lines, warnings, result.scores, result.suspects)
    with atomic_write(folder / PAGE) as file:
        file.write(shown.encode("utf-8", "backslashreplace"))
    with atomic_write(folder / TABLE) as file:
        text = TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(result.head)
        writer.writerows([csv_cell(cell) for cell in row] for row in result.rows)
        text.flush()
        text.detach()
    with atomic_write(folder / SUBSET) as file:
        np.save(file, result.subset)
    for line in (*result.lines, *warnings):
        print(one_line(line))
    print(one_line(f"{PAGE} shows faces; train with data.subset={folder / SUBSET}"))
    return {**result.record, "kept": len(result.subset), "bad": len(work.bad), "out": str(folder)}


def _warnings(work: Chosen) -> Iterator[str]:
    """Bad images, which are in no index list."""
    if work.bad:
        named = "; ".join(why for _, why in work.bad[:BAD_SHOWN])
        more = len(work.bad) - BAD_SHOWN
        rest = f"; and {more:,} more, which vectors/bad.txt names" if more > 0 else ""
        yield f"{counted(len(work.bad), 'bad image')}, left out: {named}{rest}"
