"""Results as files: results.json for programs, results.md, report.html, roc.png and scores.png for
people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import atomic_write
from eval.benchmarks.rfw import GROUPS
from eval.benchmarks.templates import FARS
from eval.report.html import page, remarks
from eval.report.plots import roc_png, scores_png
from eval.report.published import published_figure, published_row
from eval.report.result import Result

COLUMNS = {  # protocol -> metric -> heading; those that a result has are shown
    "pairs": {
        "accuracy": "accuracy %",
        "exact_accuracy": "exact threshold %",
        "accuracy_without_mirror": "without mirror %",
        "tar@0.01": "TAR@FAR 1e-2",
        "tar@0.001": "TAR@FAR 1e-3",
        "tar@0.0001": "TAR@FAR 1e-4",
        "auc": "AUC %",
        "eer": "EER %",
    },
    "groups": {
        **{f"accuracy_{group}": f"{group} %" for group in GROUPS},
        "accuracy": "mean ± std over groups %",
        "spread": "best − worst",
        "error_ratio": "worst / best error",
    },
    "templates": {
        **{f"nearest_tar@{far:g}": f"TAR@{far:.0e}".replace("e-0", "e-") for far in FARS},
        **{f"tar@{far:g}": f"strict TAR@{far:.0e}".replace("e-0", "e-") for far in FARS},
        "rank1": "rank-1",
        "rank5": "rank-5",
        "rank10": "rank-10",
        "tpir@0.01": "TPIR@FPIR 1e-2",
        "tpir@0.1": "TPIR@FPIR 1e-1",
        "concatenated_rank1": "rank-1, one gallery",
        "concatenated_rank5": "rank-5, one gallery",
        "concatenated_rank10": "rank-10, one gallery",
        "concatenated_tpir@0.01": "TPIR@1e-2, one gallery",
        "concatenated_tpir@0.1": "TPIR@1e-1, one gallery",
    },
    "identification": {
        **{f"rank{rank}": f"rank-{rank}" for rank in (1, 5, 10, 20)},
        "tpir@0.01": "TPIR@FPIR 1e-2",
        "tpir@0.1": "TPIR@FPIR 1e-1",
    },
}


def write_report(
    results: Sequence[Result], folder: str | Path, *, published: str | None = None
) -> None:
    """Writes results.json, results.md, report.html, roc.png and scores.png into the folder (made if
    need be), each whole or not at all. report.html shows faces (the worst mistakes): it goes where
    the pictures may go.

    published: a row of eval/report/published.yaml to print beside ours.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    row = published_row(published) if published else None
    record = {"published": row, "results": [as_json(result) for result in results]}
    files = {
        "results.json": json.dumps(record, indent=1).encode(),
        "results.md": markdown(results, row).encode(),
    }
    curves = {label: curve for result in results for label, curve in result.curves.items()}
    if curves:
        files["roc.png"] = roc_png(curves)
    histograms = {result.name: result.histogram for result in results if result.histogram}
    if histograms:
        files["scores.png"] = scores_png(histograms)
    files["report.html"] = page(results, tables(results, row), row).encode()
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)


def as_json(result: Result) -> dict[str, Any]:
    """Name, metrics, settings, notes and skip reason of a result as JSON values; what is not finite
    becomes null."""
    metrics = {
        key: round(value, 6) if math.isfinite(value) else None
        for key, value in result.metrics.items()
    }
    return {
        "name": result.name,
        "metrics": metrics,
        "settings": result.settings,
        "notes": list(result.notes),
        "skipped": result.skipped,
    }


def markdown(results: Sequence[Result], row: dict[str, Any] | None = None) -> str:
    """One table for each protocol, then the settings, the warnings and what was skipped."""
    lines = ["# Results", ""]
    for heads, *body in tables(results, row):
        lines += [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *body)]
        lines.append("")
    for result in results:
        lines += [f"- {line}" for line in remarks(result)]
    if row:
        lines += ["", f"Published: {row['source']}."]
    return "\n".join(lines) + "\n"


def tables(results: Sequence[Result], row: dict[str, Any] | None) -> list[list[list[str]]]:
    """For each protocol that occurs: heading cells, then a line for each result; many figures stand
    one a line."""
    grouped = {
        protocol: [r for r in results if r.metrics and protocol_of(r) == protocol]
        for protocol in COLUMNS
    }
    return [
        _table(chosen, COLUMNS[protocol], row) for protocol, chosen in grouped.items() if chosen
    ]


def protocol_of(result: Result) -> str:
    """`pairs`, `templates` or `identification`."""
    return str(result.settings.get("protocol", "")).split(",")[0]


def _table(
    results: Sequence[Result], columns: dict[str, str], row: dict[str, Any] | None
) -> list[list[str]]:
    cells = [["benchmark"], *([result.name] for result in results)]
    for key, heading in columns.items():
        if not any(key in result.metrics for result in results):
            continue
        cells[0].append(heading)
        figures = [published_figure(row, result.name, key) if row else None for result in results]
        if any(figure is not None for figure in figures):
            cells[0].append("published")
        for line, result, figure in zip(cells[1:], results, figures, strict=True):
            line.append(format_metric(result.metrics, key))
            if len(line) < len(cells[0]):
                line.append("" if figure is None else f"{figure:.2f}")
    upright = len(cells[0]) <= 10 or len(results) > 6
    return cells if upright else [list(column) for column in zip(*cells, strict=True)]


def format_metric(metrics: dict[str, float], key: str) -> str:
    """`99.283 ± 0.435` where there is a deviation, else `99.914`; empty where the figure is
    missing."""
    if key not in metrics:
        return ""
    deviation = metrics.get(f"{key}_std")
    return f"{metrics[key]:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")
