"""Draws a replayed run with matplotlib."""

import math
from pathlib import Path

from fastface.replay import Trace


def draw(trace: Trace, path: str | Path, title: str) -> None:
    """Writes a PNG of three panels over the steps: loss, signal with threshold λ, learning rate.

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
    loss_panel, signal_panel, lr_panel = figure.subplots(3, 1, sharex=True)
    loss_panel.plot(trace.steps, trace.losses, linewidth=0.8)
    loss_panel.set(ylabel="loss", title=title)

    signals = [math.nan if value is None else value for value in trace.signals]
    signal_panel.plot(trace.steps, signals, linewidth=0.8)
    dashed = {"color": "black", "linestyle": "--", "linewidth": 0.8}
    signal_panel.plot(trace.steps, trace.thresholds, label="λ", **dashed)
    # The signal starts far above its threshold, but only its values near the threshold matter.
    top = 6 * max(abs(value) for value in trace.thresholds)
    signal_panel.set(ylabel="signal", ylim=(-top / 3, top) if top else None)
    signal_panel.legend(loc="upper right")

    lr_panel.step(trace.steps, trace.lrs, where="post")
    lr_panel.set(ylabel="learning rate", xlabel="step", yscale="log")
    for change in trace.changes:
        for panel in (loss_panel, signal_panel, lr_panel):
            panel.axvline(change.step, color="gray", linewidth=0.5, linestyle=":")

    # The picture is written under a temporary name, so a file with the final name is complete.
    target = Path(path)
    beside = target.with_name(target.name + ".partial")
    try:
        figure.savefig(beside, format="png", dpi=120)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
