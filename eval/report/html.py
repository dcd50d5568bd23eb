"""report.html: tables, curves, histograms and the worst mistakes, all in one file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from data.text import one_line
from eval.report.result import Result, WorstPair
from eval.report.tables import settings_lines, tables, warning_lines

STYLE = """
:root { color-scheme: light; }
body {
  font: 16px/1.5 system-ui, sans-serif; color: #222;
  max-width: 70rem; margin: 0 auto; padding: 1rem;
}
h1 { font-size: 1.5rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.wide { overflow-x: auto; }
table {
  border-collapse: collapse; font-variant-numeric: tabular-nums;
  margin: .8rem 0; font-size: .86rem;
}
th, td {
  border-bottom: 1px solid #ddd; padding: .3rem .5rem;
  text-align: right; white-space: nowrap;
}
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #888; }
.plots, .sheet { display: grid; gap: 1rem; }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.plots img { width: 100%; height: auto; }
.sheet { grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); }
figure { margin: 0; }
.faces { display: flex; gap: 2px; }
.faces img { width: 50%; aspect-ratio: 1; object-fit: cover; }
figcaption { font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; color: #555; }
.faces-notice { border: 2px solid #a40; padding: .5rem .8rem; }
.warning { border-left: 4px solid #c60; padding-left: .7rem; }
"""


def html_report(
    results: Sequence[Result], plots: Mapping[str, bytes], row: dict[str, Any] | None = None
) -> str:
    """The whole HTML document. If it shows faces, it says so at the top.

    plots: name -> PNG. row: the published figures that the tables show beside ours.
    """
    shown = any(result.worst for result in results)
    notice = [faces_notice("the pictures of the worst mistakes")] if shown else []
    body = [
        "<h1>Evaluation</h1>",
        *notice,
        *(_table(heads, rows) for heads, *rows in tables(results, row)),
    ]
    if row:
        body.append(f"<p>Published: {escape(row['source'])}.</p>")
    for result in results:
        body += [f"<p>{escape(line)}</p>" for line in settings_lines(result)]
        body += [f"<p class=warning>{escape(line)}</p>" for line in warning_lines(result)]
    if plots:
        images = "".join(image(content, name) for name, content in plots.items())
        body.append(f"<h2>Curves</h2><div class=plots>{images}</div>")
    for result in results:
        if result.worst:
            body.append(_worst_mistakes(result))
    return document("Evaluation", "".join(body))


def document(title: str, body: str) -> str:
    """A whole HTML document in the style of the report. title: text. body: HTML."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def faces_notice(where: str) -> str:
    """HTML for the top of a page that shows faces. where: text that says in which pictures."""
    return (
        f"<p class=faces-notice><strong>This page shows faces, in {escape(where)}.</strong> Faces "
        "of real people are biometric data. Keep this file only where you may keep the pictures, "
        "and give it only to those who may see them.</p>"
    )


def escape(text: str) -> str:
    """The text as it is shown, in an element or in a quoted attribute."""
    return html.escape(one_line(text), quote=True)


def _table(heads: list[str], body: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in body)
    rows = "".join(f"<tr>{cells}</tr>" for cells in lines)
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _worst_mistakes(result: Result) -> str:
    accepts = [pair for pair in result.worst if not pair.same]
    rejects = [pair for pair in result.worst if pair.same]
    return (
        f"<h2>Worst mistakes: {escape(result.name)}</h2>"
        + _sheet("False accepts: two people taken for one", accepts)
        + _sheet("False rejects: one person taken for two", rejects)
    )


def _sheet(title: str, pairs: list[WorstPair]) -> str:
    if not pairs:
        return f"<h3>{title}</h3><p>None.</p>"
    figures = []
    for pair in pairs:
        # The folder names the person, so it stands before the file.
        names = ["/".join(PurePath(name).parts[-2:]) for name in pair.names]
        faces = "".join(map(image, pair.images, names))
        caption = f"{pair.score:.3f}<br>{escape(names[0])}<br>{escape(names[1])}"
        figures.append(
            f"<figure><div class=faces>{faces}</div><figcaption>{caption}</figcaption></figure>"
        )
    return f"<h3>{title}</h3><div class=sheet>{''.join(figures)}</div>"


def image(content: bytes, text: str) -> str:
    """HTML of an encoded image, which becomes part of the page. text: what it shows."""
    kind = "png" if content[:4] == b"\x89PNG" else "webp" if content[8:12] == b"WEBP" else "jpeg"
    encoded = base64.b64encode(content).decode()
    return f"<img src='data:image/{kind};base64,{encoded}' alt='{escape(text)}'>"
