"""Draws a replayed run. Needs matplotlib."""

import math
import os
from pathlib import Path

from fastface.replay import Trace


def draw(trace: Trace, path: str | Path, title: str) -> None:
    """Writes a PNG of three panels over the steps: the loss; the signal with its threshold λ; the
    rate.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "drawing needs matplotlib, which is not installed: pip install matplotlib"
        ) from None
    figure = Figure(figsize=(10, 8), layout="constrained")
    loss_panel, signal_panel, rate_panel = figure.subplots(3, 1, sharex=True)
    loss_panel.plot(trace.steps, trace.losses, linewidth=0.8)
    loss_panel.set(ylabel="loss", title=title)
    signal_panel.plot(
        trace.steps,
        [math.nan if value is None else value for value in trace.signals],
        linewidth=0.8,
    )
    signal_panel.plot(
        trace.steps, trace.thresholds, color="black", linestyle="--", linewidth=0.8, label="λ"
    )
    # the signal starts far above its threshold; what matters happens round it
    top = 6 * max(abs(value) for value in trace.thresholds)
    signal_panel.set(ylabel="signal", ylim=(-top / 3, top) if top else None)
    signal_panel.legend(loc="upper right")
    rate_panel.step(trace.steps, trace.rates, where="post")
    rate_panel.set(ylabel="learning rate", xlabel="step", yscale="log")
    for change in trace.changes:
        for panel in (loss_panel, signal_panel, rate_panel):
            panel.axvline(change.step, color="gray", linewidth=0.5, linestyle=":")
    target = Path(path)
    beside = target.with_name(target.name + ".partial")
    try:
        with open(beside, "wb") as file:
            figure.savefig(file, format="png", dpi=120)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
