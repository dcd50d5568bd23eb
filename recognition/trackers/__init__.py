"""Trackers: what shows the figures and pictures of a run, one file each.

A tracker's module exports `open_tracker(run) -> Tracker`, `PACKAGES`, the names of what it imports
beyond the `train` extra, and `EXTRA`, the extra of pyproject.toml that installs them. It may raise
whatever it likes: `recognition/tracking.py` calls it in a thread, and no error ends a run.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.parts import find_part

TRACKERS = "recognition.trackers"
End = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    folder: the run folder. config: its values by dotted key. first_step: the step from which it
    starts or goes on; what was tracked of later steps is trained again.
    """

    folder: Path
    config: Mapping[str, Any]
    first_step: int


@dataclass(frozen=True)
class Tracker:
    """An open tracker: what it does with the figures and pictures of an optimizer step."""

    scalars: Callable[[int, Mapping[str, float]], None]
    """(step, figures by name). `images` among them is how many images the run has trained on."""
    histogram: Callable[[int, str, np.ndarray], None]
    """(step, name, values (N,) float32, all finite)."""
    picture: Callable[[int, str, bytes], None]
    """(step, name, a PNG with three channels)."""
    close: Callable[[End], None]
    """How the run ended. Nothing is called afterwards."""


def check_trackers(names: Iterable[str]) -> None:
    """Raise ValueError, which names the extra, unless what the trackers import is installed."""
    for name in names:
        module = find_part(TRACKERS, name)
        missing = [one for one in module.PACKAGES if importlib.util.find_spec(one) is None]
        if missing:
            raise ValueError(
                f"{name} needs {', '.join(missing)}: pip install -e '.[{module.EXTRA}]'"
            )
