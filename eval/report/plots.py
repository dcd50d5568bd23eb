"""The pictures of a report, as PNG bytes."""

from io import BytesIO
from typing import Any

import numpy as np

from data.text import one_line
from eval.report.result import Curve, Histogram


def roc_png(curves: dict[str, Curve]) -> bytes:
    """All curves over a logarithmic FAR axis.

    A curve begins at its first false accept. Its TAR without a false accept is drawn just left of
    that.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    lowest = 0.1
    for label, curve in curves.items():
        first = curve.far[curve.far > 0].min(initial=1.0)
        far = np.maximum(curve.far, first / 2)
        axes.plot(
            far, 100 * curve.tar, drawstyle="steps-post", label=plain_text(label), linewidth=1.5
        )
        lowest = min(lowest, first / 2)
    axes.set(xscale="log", xlim=(lowest, 1))
    axes.set(xlabel="false accept rate", ylabel="true accept rate, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    return png(figure)


def scores_png(histograms: dict[str, Histogram]) -> bytes:
    """Histograms of the cosines of genuine pairs and impostors, one plot per benchmark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4 * len(histograms)), layout="constrained")
    plots = figure.subplots(len(histograms), squeeze=False)[:, 0]
    for axes, (name, counts) in zip(plots, histograms.items(), strict=True):
        for kind, label in ((counts.impostors, "impostors"), (counts.genuine, "genuine")):
            percent = 100 * kind / max(kind.sum(), 1)
            axes.stairs(percent, counts.edges, fill=True, alpha=0.5, label=label)
        seen = np.flatnonzero(counts.genuine + counts.impostors)
        axes.set(xlim=(counts.edges[seen[0]], counts.edges[seen[-1] + 1]))
        axes.set(xlabel=f"cosine similarity, {plain_text(name)}", ylabel="share of pairs, %")
        axes.legend(fontsize="small")
    return png(figure)


def plain_text(name: str) -> str:
    """The name as matplotlib shows it: `$` would begin a formula, and a first `_` hides a label."""
    text = one_line(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def png(figure: Any, dpi: int = 130) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
