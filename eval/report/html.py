"""report.html: tables, curves, histograms and the worst mistakes in one file that needs nothing
beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from data.images import stem
from eval.report.plots import roc_png, scores_png
from eval.report.result import Result, WorstPair

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; font-size: .86rem; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .5rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #888; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.plots img { width: 100%; height: auto; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem .8rem; }
figure { margin: 0; } .faces { display: flex; gap: 2px; } .faces img { width: 50%; aspect-ratio: 1; object-fit: cover; }
figcaption { font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; color: #555; }
.warning { border-left: 4px solid #c60; padding-left: .7rem; }
"""


def page(
    results: Sequence[Result], tables: list[list[list[str]]], row: dict[str, Any] | None = None
) -> str:
    """The whole HTML document. tables: heading cells and rows of each; row: the published figures'
    source."""
    parts = ["<h1>Evaluation</h1>", *(_table(heads, body) for heads, *body in tables)]
    if row:
        parts.append(f"<p>Published: {escape(row['source'])}.</p>")
    for result in results:
        warnings = {*result.notes, *([result.skipped] if result.skipped else [])}
        for line in remarks(result):
            warned = any(text in line for text in warnings)
            parts.append(f"<p{' class=warning' if warned else ''}>{escape(line)}</p>")
    curves = {label: curve for result in results for label, curve in result.curves.items()}
    plots = [_image(roc_png(curves), "ROC")] if curves else []
    plots += [
        _image(scores_png({r.name: r.histogram}), f"scores of {r.name}")
        for r in results
        if r.histogram
    ]
    if plots:
        parts.append(f"<h2>Curves</h2><div class=plots>{''.join(plots)}</div>")
    for result in results:
        if result.worst:
            parts.append(f"<h2>Worst mistakes: {escape(result.name)}</h2>")
            parts.append(
                _sheet(
                    "False accepts: two people taken for one",
                    [p for p in result.worst if not p.same],
                )
            )
            parts.append(
                _sheet(
                    "False rejects: one person taken for two", [p for p in result.worst if p.same]
                )
            )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>Evaluation</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def remarks(result: Result) -> list[str]:
    """Plain lines: the settings, then the warnings; or why the benchmark was skipped."""
    if result.skipped:
        return [f"{result.name}, skipped: {result.skipped}"]
    told = ", ".join(
        f"{key} {_plain(value)}"
        for key, value in result.settings.items()
        if not isinstance(value, list)
    )
    return [f"{result.name}: {told}", *(f"{result.name}, warning: {note}" for note in result.notes)]


def _plain(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _table(heads: list[str], body: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body
    )
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _sheet(title: str, pairs: list[WorstPair]) -> str:
    if not pairs:
        return f"<h3>{title}</h3><p>None.</p>"
    figures = []
    for pair in pairs:
        names = [stem(PurePath(name).name) for name in pair.names]
        faces = "".join(_image(image, name) for image, name in zip(pair.images, names, strict=True))
        caption = f"{pair.score:.3f}<br>{escape(names[0])}<br>{escape(names[1])}"
        figures.append(
            f"<figure><div class=faces>{faces}</div><figcaption>{caption}</figcaption></figure>"
        )
    return f"<h3>{title}</h3><div class=sheet>{''.join(figures)}</div>"


def _image(content: bytes, text: str) -> str:
    kind = "png" if content[:4] == b"\x89PNG" else "webp" if content[8:12] == b"WEBP" else "jpeg"
    encoded = base64.b64encode(content).decode()
    return f"<img src='data:image/{kind};base64,{encoded}' alt='{escape(text, quote=True)}'>"
