"""Reproduces the tables of the papers: published figures, ours, and the difference.

    python -m scripts.reproduce --table fastface --runs runs

For a row that was not run, the table shows the memory that it needs, and tables.csv has the command
that trains it. The rows are those of eval/report/published.yaml, and configs/ROW.yaml trains a row.
A folder below --runs that holds config.yaml and results.json is a run of the row that its
`evaluate.published` names, whatever the folder is called. The results.json files in folders of a
run count too: `python -m eval templates --model RUN --root IJBC --out RUN/ijbc` adds IJB-C.

Files are written to --out: tables.md, tables.csv and, if there are runs or --logs, loss.png.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import atomic_write
from eval.report.published import published_figure
from scripts._curves import loss_png, read_log, run_curve, training_lines
from scripts._published_runs import Row, Run, choose_tables, read_rows, read_runs
from scripts._tables import csv_table, markdown_table
from tools._cli import command

SHOWN = {
    ("lfw", "accuracy"): "LFW",
    ("cfp_fp", "accuracy"): "CFP-FP",
    ("agedb_30", "accuracy"): "AgeDB-30",
    ("ijbb", "nearest_tar@0.0001"): "IJB-B 1e-4",
    ("ijbc", "nearest_tar@0.0001"): "IJB-C 1e-4",
    ("ijbc", "nearest_tar@1e-05"): "IJB-C 1e-5",
}
Tables = Mapping[str, Sequence[Row]]


def markdown(tables: Tables) -> str:
    """One line per published row, and below it one per run of ours, with the differences.

    Hours and memory are for one GPU, unless the cell gives another number.
    """
    lines = []
    for table, rows in tables.items():
        lines += [f"## {table}", "", *markdown_table(_markdown_rows(rows)), ""]
        notes = [(run.folder, note) for row in rows for run in row.runs for note in run.notes]
        lines += [f"- `{folder}`: {note}." for folder, note in notes]
        lines += [""] if notes else []
    return "\n".join(lines)


def _markdown_rows(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    shown = {key: head for key, head in SHOWN.items() if any(key in row.figures for row in rows)}
    for row in rows:
        theirs = row.figures
        yield {
            "row": f"`{row.name}`",
            **{head: _percent(theirs.get(key)) for key, head in shown.items()},
            "hours": _on(row.published.get("hours", ""), " on ", row.published.get("gpus", 1)),
            "planned memory": _on(f"{row.memory / 1e9:.1f} GB", " on each of ", row.ranks),
            "ours": "" if row.runs else "not run",
        }
        for run in row.runs:
            yield {
                "row": "",
                **{head: _our_cell(row, run, key) for key, head in shown.items()},
                "hours": _percent(run.hours),
                "planned memory": "",
                "ours": f"`{run.folder}`",
            }


def _percent(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"


def _on(text: object, words: str, machines: int) -> str:
    return f"{text}{words}{machines}" if machines > 1 else str(text)


def _our_cell(row: Row, run: Run, key: tuple[str, str]) -> str:
    if key not in run.figures:
        return ""
    ours, published = run.figures[key], published_figure(row.published, *key)
    return f"{ours:.2f}" + ("" if published is None else f" ({round(ours - published, 2):+.2f})")


def csv_rows(tables: Tables) -> Iterator[dict[str, Any]]:
    """One row per run and figure, published or ours; a published row without any has one."""
    for row in (row for rows in tables.values() for row in rows):
        for run in row.runs or (None,):
            published, ours = row.figures, run.figures if run else {}
            extra = [key for key in ours if key[0] in row.published and key not in published]
            for key in [*published, *extra] or [("", "")]:
                theirs, mine = published.get(key), ours.get(key)
                apart = None if theirs is None or mine is None else round(mine - theirs, 2)
                yield {
                    "table": row.table,
                    "row": row.name,
                    "run": run.folder if run else "",
                    "benchmark": key[0],
                    "metric": key[1],
                    "published": theirs,
                    "ours": mine,
                    "difference": apart,
                    "published_hours": row.published.get("hours"),
                    "published_gpus": row.published.get("gpus", 1),
                    "our_hours": run.hours if run else None,
                    "planned_bytes": row.memory,
                    "processes": row.ranks,
                    "command": row.command,
                    "notes": "; ".join(run.notes) if run else "not run",
                }


def run(
    *,
    table: tuple[str, ...] = (),
    runs: Path | None = None,
    logs: tuple[Path, ...] = (),
    out: Path = Path("reproduced"),
) -> dict[str, Any]:
    """Write the tables.

    table: tables of eval/report/published.yaml (default: all).
    runs: folder that holds run folders.
    logs: published logs for loss.png: CSV or .log files, which may be gzipped.
    out: folder for the files.
    """
    names = choose_tables(table)
    ours = read_runs(runs) if runs else []
    tables = {name: read_rows(name, ours) for name in names}
    shown = [run for rows in tables.values() for row in rows for run in row.runs]
    drawn = [run_curve(run.folder) for run in shown if training_lines(run.folder)]
    curves = [*map(read_log, logs), *drawn]
    text = markdown(tables)
    files = {"tables.md": text.encode(), "tables.csv": csv_table([*csv_rows(tables)]).encode()}
    if curves:
        files["loss.png"] = loss_png(curves)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(out / name) as file:
            file.write(content)
    print(text)
    print("A row that was not run is started by the command in its config, also in tables.csv.")
    print(f"{len(shown)} run(s); written: {', '.join(str(out / name) for name in files)}")
    return {"runs": len(shown), "files": [str(out / name) for name in files]}


main = command(run)
