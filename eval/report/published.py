"""Published figures, to print beside ours."""

from pathlib import Path
from typing import Any

import yaml

from data.parts import hint

TABLE = Path(__file__).with_name("published.yaml")


def published_rows() -> dict[str, dict[str, Any]]:
    """All rows of published.yaml by name.

    A row has `table`, `source`, `identities` of the training set, perhaps `hours` and `gpus`, and
    for each benchmark its figures in percent.
    """
    rows: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return rows


def published_row(name: str) -> dict[str, Any]:
    """One row, or a ValueError that names the nearest rows that exist."""
    rows = published_rows()
    if name not in rows:
        raise ValueError(f"no published row {name!r}; {hint(name, rows)}")
    return rows[name]


def published_figure(row: dict[str, Any], benchmark: str, metric: str) -> float | None:
    """One figure in percent; None if it was not published."""
    figures = row.get(benchmark_key(benchmark))
    return figures.get(metric) if isinstance(figures, dict) else None


def benchmark_key(name: str) -> str:
    """A benchmark's name as published.yaml writes it: `cfp_fp` for `CFP-FP` and `cfp fp`."""
    return name.lower().replace("-", "_").replace(" ", "_")
