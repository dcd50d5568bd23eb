"""Tables of scripts, as Markdown that can be pasted into docs, and as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import tee
from typing import Any

from data.text import csv_cell, one_line

TableRow = Mapping[str, Any]


def markdown_table(rows: Iterable[TableRow]) -> Iterator[str]:
    """The lines of a table, headed by the keys of the rows. A line comes as soon as its row."""
    for place, row in enumerate(rows):
        if place == 0:
            yield markdown_line(row)
            yield markdown_line(["---"] * len(row))
        yield markdown_line(map(shown_number, row.values()))


def markdown_line(cells: Iterable[object]) -> str:
    texts = (re.sub(r"(?<!\\)\|", r"\|", one_line(str(cell))) for cell in cells)
    return f"| {' | '.join(texts)} |"


def shown_number(value: object) -> object:
    """A float with three decimals, and everything else unchanged."""
    return f"{value:.3f}" if isinstance(value, float) else value


def show_table(rows: Iterable[TableRow]) -> list[TableRow]:
    """Print each row as it comes, and return them all."""
    shown, kept = tee(rows)
    for line in markdown_table(shown):
        print(line, flush=True)
    return list(kept)


def show_figures(figures: TableRow) -> None:
    """Print one figure per line."""
    widest = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{widest}}  {shown_number(value)}")


def csv_table(rows: Sequence[TableRow]) -> str:
    """The rows as CSV, headed by their keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
