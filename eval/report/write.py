"""Results as files: results.json for programs, the others for people."""

import csv
import gc
import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from data.files import atomic_write
from data.text import csv_cell
from eval.report.html import html_report
from eval.report.plots import roc_png, scores_png
from eval.report.published import published_row
from eval.report.result import Result
from eval.report.scores import FILE, scores_npz
from eval.report.tables import markdown


def write_report(
    results: Sequence[Result], folder: str | Path, *, published: str | None = None
) -> None:
    """Write results.json, results.md, report.html, roc.png and scores.png into `folder`.

    If the results have scores of pairs, scores.npz holds them (eval/report/scores.py).
    If people were searched in a gallery, matches.csv lists whom each probe image was taken for.

    The folder is made if it does not exist, and each file is written atomically. report.html shows
    faces (the worst mistakes), so keep it only where you may keep the pictures.

    published: a row of eval/report/published.yaml to print beside ours.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    row = published_row(published) if published else None
    record = {"published": row, "results": [as_json(result) for result in results]}
    curves = {label: curve for result in results for label, curve in result.curves.items()}
    histograms = {result.name: result.histogram for result in results if result.histogram}
    plots = {}
    if curves:
        plots["roc.png"] = roc_png(curves)
    if histograms:
        plots["scores.png"] = scores_png(histograms)
    # Figures refer to themselves in circles. Without this, those of many evaluations pile up to
    # 100 MB before Python's collector next runs. It costs a tenth of a second.
    gc.collect()
    files: dict[str, bytes] = {
        "results.json": json.dumps(record, indent=1).encode(),
        "results.md": markdown(results, row).encode(),
        "report.html": html_report(results, plots, row).encode(),
        **plots,
    }
    if any(result.identified for result in results):
        files["matches.csv"] = matches_csv(results).encode()
    if scores := scores_npz(results):
        files[FILE] = scores
    else:  # those of an earlier evaluation would be taken for this one's
        (folder / FILE).unlink(missing_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)


def matches_csv(results: Sequence[Result]) -> str:
    """One line per probe image and gallery entry that is most like it, best first."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["benchmark", "probe", "person", "rank", "found", "cosine", "right"])
    for result in results:
        for one in result.identified:
            for rank, (name, cosine) in enumerate(one.found, 1):
                right = "yes" if name == one.person else "no"
                cells = (one.probe, one.person, rank, name, round(cosine, 6), right)
                writer.writerow([csv_cell(cell) for cell in (result.name, *cells)])
    return text.getvalue()


def as_json(result: Result) -> dict[str, Any]:
    """A result without its curves and pictures as JSON values; NaN and infinity become null."""
    metrics = {
        key: round(value, 6) if math.isfinite(value) else None
        for key, value in result.metrics.items()
    }
    return {
        "name": result.name,
        "protocol": result.protocol.name,
        "metrics": metrics,
        "settings": result.settings,
        "notes": list(result.notes),
        "skipped": result.skipped,
    }
