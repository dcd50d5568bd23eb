"""Results as files: results.json for programs, results.md for people, and the curves as a picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.published import published_figure, published_row
from eval.result import Result

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
}


def write_report(results: Sequence[Result], folder: str | Path, *, published: str | None = None) -> None:
    """Writes results.json, results.md and roc.png into the folder (made if need be), each whole or not at all.

    published: a row of eval/published.yaml to print beside ours.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    row = published_row(published) if published else None
    record = {"published": row, "results": [as_json(result) for result in results]}
    _write(folder / "results.json", (json.dumps(record, indent=1) + "\n").encode())
    _write(folder / "results.md", markdown(results, row).encode())
    if any(result.curves for result in results):
        _write(folder / "roc.png", roc_png(results))


def as_json(result: Result) -> dict[str, Any]:
    """Name, metrics, settings, notes and skip reason of a result as JSON values; what is not finite becomes null."""
    metrics = {key: round(value, 6) if math.isfinite(value) else None for key, value in result.metrics.items()}
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
    for protocol, columns in COLUMNS.items():
        chosen = [r for r in results if r.metrics and protocol_of(r) == protocol]
        if chosen:
            lines += [*_table(chosen, columns, row), ""]
    for result in results:
        if result.skipped:
            lines.append(f"- **{result.name} skipped:** {result.skipped}")
        else:
            told = (f"{key} {value}" for key, value in result.settings.items() if not isinstance(value, list))
            lines.append(f"- {result.name}: {', '.join(told)}")
        lines += [f"- **{result.name}, warning:** {note}" for note in result.notes]
    if row:
        lines += ["", f"Published: {row['source']}."]
    return "\n".join(lines) + "\n"


def protocol_of(result: Result) -> str:
    """`pairs`, `templates` or `identification`."""
    return str(result.settings.get("protocol", "")).split(",")[0]


def _table(results: Sequence[Result], columns: dict[str, str], row: dict[str, Any] | None) -> Iterable[str]:
    shown = [key for key in columns if any(key in result.metrics for result in results)]
    heads = ["benchmark"]
    for key in shown:
        heads.append(columns[key])
        if row and any(published_figure(row, result.name, key) is not None for result in results):
            heads.append("published")
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for result in results:
        cells = [result.name]
        for key in shown:
            cells.append(format_metric(result.metrics, key))
            if row and any(published_figure(row, other.name, key) is not None for other in results):
                figure = published_figure(row, result.name, key)
                cells.append("" if figure is None else f"{figure:.2f}")
        yield "| " + " | ".join(cells) + " |"


def format_metric(metrics: dict[str, float], key: str) -> str:
    """`99.283 ± 0.435` where there is a deviation, else `99.914`; empty where the figure is missing."""
    if key not in metrics:
        return ""
    deviation = metrics.get(f"{key}_std")
    return f"{metrics[key]:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def roc_png(results: Sequence[Result]) -> bytes:
    """All curves over a logarithmic FAR axis, as PNG."""
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    lowest = 1.0
    for result in results:
        for label, curve in result.curves.items():
            axes.step(curve.far, curve.tar, where="post", label=label, linewidth=1.4)
            lowest = min(lowest, curve.far[curve.far > 0].min(initial=1.0))
    axes.set_xscale("log")
    axes.set_xlim(max(lowest / 2, 1e-7), 1)
    axes.set_ylim(None, 1.005)
    axes.set_xlabel("FAR")
    axes.set_ylabel("TAR")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
