"""Results as tables, and as the Markdown text around them."""

from collections.abc import Sequence
from typing import Any

from data.text import markdown_text
from eval.report.published import published_figure
from eval.report.result import Protocol, Result

Table = list[list[str]]
"""Rows of cells; the first row holds the headings."""
MOST_COLUMNS = 10  # a wider table is turned, so that each metric has a row
MOST_RESULTS = 6  # with more results the turned table would be as wide


def markdown(results: Sequence[Result], row: dict[str, Any] | None = None) -> str:
    """One table per protocol, then settings, warnings and the reasons of skipped benchmarks.

    row: published figures to print beside ours.
    """
    lines = ["# Results", ""]
    for table in tables(results, row):
        heads, *body = [[markdown_text(cell) for cell in cells] for cells in table]
        lines += [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *body)]
        lines.append("")
    for result in results:
        texts = (*settings_lines(result), *warning_lines(result))
        lines += [f"- {markdown_text(text)}" for text in texts]
    if row:
        lines += ["", f"Published: {row['source']}."]
    return "\n".join(lines) + "\n"


def tables(results: Sequence[Result], row: dict[str, Any] | None = None) -> list[Table]:
    """One table per protocol, in the order of their first result; skipped results are in none."""
    measured = [result for result in results if result.metrics]
    protocols = dict.fromkeys(result.protocol for result in measured)
    return [
        _table(protocol, [result for result in measured if result.protocol is protocol], row)
        for protocol in protocols
    ]


def settings_lines(result: Result) -> list[str]:
    """One line with the protocol and the settings; none for a skipped benchmark."""
    if result.skipped:
        return []
    settings = [
        f"{key} {_yes_or_no(value)}"
        for key, value in result.settings.items()
        if not isinstance(value, list)
    ]
    return [f"{result.name}: {', '.join([result.protocol.title, *settings])}"]


def warning_lines(result: Result) -> list[str]:
    """The warnings of a result, and why it was skipped."""
    skipped = [f"{result.name}, skipped: {result.skipped}"] if result.skipped else []
    return skipped + [f"{result.name}, warning: {note}" for note in result.notes]


def _yes_or_no(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _table(protocol: Protocol, results: Sequence[Result], row: dict[str, Any] | None) -> Table:
    columns = [["benchmark", *(result.name for result in results)]]
    for metric, heading in _headings(protocol, results).items():
        columns.append([heading, *(format_metric(result.metrics, metric) for result in results)])
        figures = [published_figure(row, result.name, metric) for result in results] if row else []
        if any(figure is not None for figure in figures):
            texts = ("" if figure is None else f"{figure:.2f}" for figure in figures)
            columns.append(["published", *texts])
    if len(columns) > MOST_COLUMNS and len(results) <= MOST_RESULTS:
        return columns
    return [list(line) for line in zip(*columns, strict=True)]


def _headings(protocol: Protocol, results: Sequence[Result]) -> dict[str, str]:
    """Metric -> heading: the declared columns that occur, then what the protocol does not name."""
    found = dict.fromkeys(metric for result in results for metric in result.metrics)
    headings = {key: text for key, text in protocol.columns.items() if key in found}
    named = {*protocol.columns, *protocol.unlisted}
    for metric in found:
        deviation = metric.endswith("_std") and metric.removesuffix("_std") in found
        if not deviation and metric not in named:
            headings[metric] = metric
    return headings


def format_metric(metrics: dict[str, float], key: str) -> str:
    """`99.283 ± 0.435` if there is a deviation, else `99.914`; empty without a figure."""
    if key not in metrics:
        return ""
    deviation = metrics.get(f"{key}_std")
    return f"{metrics[key]:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")
