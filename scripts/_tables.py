"""Tables that scripts print, as Markdown, so that they can go into docs as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def show_table(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Print each row as it comes, in a Markdown table with their keys as heads; return all rows."""
    shown: list[Mapping[str, Any]] = []
    for row in rows:
        if not shown:
            print(markdown_line(row), markdown_line(["---"] * len(row)), sep="\n")
        print(markdown_line(map(shown_number, row.values())), flush=True)
        shown.append(row)
    return shown


def markdown_line(cells: Iterable[object]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def show_figures(figures: Mapping[str, object]) -> None:
    """Print one figure per line."""
    widest = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{widest}}  {shown_number(value)}")


def shown_number(value: object) -> object:
    """Floats with three digits behind the point, everything else as it is."""
    return f"{value:.3f}" if isinstance(value, float) else value
