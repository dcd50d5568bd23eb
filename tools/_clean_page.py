"""The page of `tools.clean`: the pictures of each suspect beside those that it is compared with."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from data.decode import encode_jpeg
from data.detect import shrink
from data.images import Images
from data.read_image import BadImage, read_pixels
from eval.report.html import document, escape, faces_notice, image
from eval.report.plots import png

SIDE = 96  # of a picture on the page, in pixels
STYLE = """
.suspect { border-top: 1px solid #ddd; padding: .5rem 0; }
.suspect h3 { margin: .2rem 0 .4rem; }
.groups { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; }
.groups p { margin: 0; font-size: .78rem; color: #555; overflow-wrap: anywhere; }
.groups img { margin-right: 3px; }
"""


@dataclass(frozen=True)
class Group:
    """Pictures under one caption. images: the set that they are in. rows: their numbers in it."""

    caption: str
    images: Images
    rows: Sequence[int]


@dataclass(frozen=True)
class Suspect:
    """What the page shows of one suspect: a line with its numbers, and groups of pictures."""

    title: str
    groups: Sequence[Group]


@dataclass(frozen=True)
class Scores:
    """A histogram. values: name -> scores of any number. thresholds: name -> score."""

    axis: str
    values: dict[str, np.ndarray]
    thresholds: dict[str, float]


def page(
    title: str, lines: Sequence[str], warnings: Sequence[str], scores: Scores, found: list[Suspect]
) -> str:
    """The whole document, with all pictures in it.

    lines: paragraphs about the method and its result. warnings: such as bad images.
    """
    rows = [(group.images, int(row)) for one in found for group in one.groups for row in group.rows]
    with ThreadPoolExecutor() as threads:
        pictures = threads.map(lambda row: _thumbnail(*row), rows)
        shown = [_suspect(one, list(islice(pictures, _count(one)))) for one in found]
    body = [
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>",
        faces_notice("the pictures of the suspects"),
        *(f"<p>{escape(line)}</p>" for line in lines),
        *(f"<p class=warning>{escape(line)}</p>" for line in warnings),
        f"<p>{image(histogram_png(scores), scores.axis)}</p>",
        *shown,
    ]
    return document(title, "".join(body))


def histogram_png(scores: Scores) -> bytes:
    """The histograms of the scores over a logarithmic share, and the thresholds as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    known = {name: values[np.isfinite(values)] for name, values in scores.values.items()}
    known = {name: values for name, values in known.items() if len(values)}
    ends = [*scores.thresholds.values()]
    ends += [float(end(values)) for values in known.values() for end in (np.min, np.max)]
    finite = [end for end in ends if np.isfinite(end)]
    edges = np.linspace(min(finite, default=0), max(finite, default=1) + 1e-6, 81)
    for name, values in known.items():
        counts, _ = np.histogram(values, edges)
        label = f"{name} ({len(values):,})"
        axes.stairs(100 * counts / len(values), edges, fill=True, alpha=0.5, label=label)
    for number, (name, threshold) in enumerate(scores.thresholds.items()):
        if np.isfinite(threshold):
            style = ("-", "--", ":")[number % 3]
            axes.axvline(threshold, color="black", ls=style, label=f"{name}: {threshold:.3f}")
    if known:
        axes.set_yscale("log")
    axes.set(xlabel=scores.axis, ylabel="share, %")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    return png(figure, dpi=100)


def spread(count: int, most: int) -> list[int]:
    """Which of `count` things are shown: all, or `most` of them from the first to the last."""
    places = np.linspace(0, count - 1, min(count, most)).astype(int)
    return [int(place) for place in np.unique(places)]


def _count(one: Suspect) -> int:
    return sum(len(group.rows) for group in one.groups)


def _suspect(one: Suspect, pictures: list[bytes | None]) -> str:
    coming = iter(pictures)
    groups = []
    for group in one.groups:
        shown = "".join(_picture(next(coming), group.images.describe(int(r))) for r in group.rows)
        groups.append(f"<div><p>{escape(group.caption)}</p>{shown}</div>")
    inside = f"<h3>{escape(one.title)}</h3><div class=groups>{''.join(groups)}</div>"
    return f"<div class=suspect>{inside}</div>"


def _picture(encoded: bytes | None, name: str) -> str:
    if encoded is None:
        return f"<span>{escape(name)}: cannot be decoded</span>"
    return image(encoded, name).replace("<img ", f"<img title='{escape(name)}' ", 1)


def _thumbnail(images: Images, row: int) -> bytes | None:
    """A small JPEG; None for an image that cannot be decoded any more."""
    try:
        pixels = read_pixels(images, row)
    except BadImage:
        return None
    return encode_jpeg(shrink(pixels, min(1.0, SIDE / max(pixels.shape[:2]))))
