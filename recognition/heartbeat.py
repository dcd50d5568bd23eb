"""heartbeat.json: what a run is doing, for `python -m tools.watch` and for scripts.

    {"pid", "host", "process_start", "time", "state", "reason", "step", "total", "loss",
     "images_per_second", "eta_seconds", "trouble"}

state: training, evaluating, saving; at the end finished, stopped (by a signal), or failed with the
reason. trouble: what the run doctor finds wrong, as a list of texts. The file is written by rank 0,
atomically, at most every ten seconds while training goes on, and whenever the state or the number
of troubles changes. A process that is killed leaves the state that it was in, and `pid` tells that
it is gone.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.files import atomic_write

NAME = "heartbeat.json"
EVERY_SECONDS = 10.0
LONGEST_REASON = 2000  # characters
ENDED = ("finished", "stopped", "failed")


class Heartbeat:
    """Writes the heartbeat of a run of `total` steps that starts at step `first`."""

    def __init__(self, folder: Path, *, total: int, first: int) -> None:
        self._path, self._total, self._first = folder / NAME, total, first
        self._began = self._written = time.perf_counter()
        self._loss: float | None = None
        self._rate: float | None = None
        self._trouble: list[str] = []
        self._step, self._state = first, "training"
        self._write()

    def stepped(self, step: int) -> None:
        """A step was made. This costs nothing but a look at the clock, except every ten seconds."""
        self._step = step
        if time.perf_counter() - self._written >= EVERY_SECONDS:
            self._write()

    def logged(self, loss: float, images_per_second: float) -> None:
        """The figures of a log line, which the next heartbeats show."""
        self._loss, self._rate = loss, images_per_second

    def troubles(self, texts: list[str]) -> None:
        """What is wrong from now on. A change is written at once."""
        if texts != self._trouble:
            changed = len(texts) != len(self._trouble)
            self._trouble = texts
            if changed:
                self._write()

    def doing(self, state: str, reason: str | None = None) -> None:
        """The run is in another state from now on."""
        if (state, reason) != (self._state, None):
            self._state = state
            self._write(reason)

    def _write(self, reason: str | None = None) -> None:
        self._written = time.perf_counter()
        done = self._step - self._first
        eta = (self._total - self._step) * (self._written - self._began) / done if done else None
        finite = self._loss is not None and self._loss - self._loss == 0
        content = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process_start": process_start(os.getpid()),
            "time": time.time(),
            "state": self._state,
            "reason": reason[:LONGEST_REASON] if reason else None,
            "step": self._step,
            "total": self._total,
            "loss": self._loss if finite else None,
            "images_per_second": self._rate,
            "eta_seconds": None if self._state in ENDED else eta,
            "trouble": self._trouble,
        }
        # Not flushed to disk: that may take seconds, and after a crash nobody is alive anyway. A
        # full disk is told by what must be saved. `watch` shows how old the heartbeat is.
        with suppress(OSError), atomic_write(self._path, "w", durable=False) as file:
            json.dump(content, file)


@contextmanager
def heartbeat(
    folder: Path, *, total: int, first: int, stops: tuple[type[BaseException], ...]
) -> Iterator[Heartbeat]:
    """The heartbeat of what happens inside, whose end it tells: finished, stopped or failed.

    stops: exceptions that mean that somebody stopped the run.
    """
    beat = Heartbeat(folder, total=total, first=first)
    stops = (*stops, KeyboardInterrupt)
    try:
        yield beat
    except stops as stop:
        beat.doing("stopped", str(stop) or "interrupted")
        raise
    except BaseException as error:
        beat.doing("failed", f"{type(error).__name__}: {error}")
        raise
    beat.doing("finished")


def read_heartbeat(folder: Path) -> dict[str, Any] | None:
    """The heartbeat of a run folder, None where there is none.

    Raises ValueError, which names the file, for one that is damaged.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: not a heartbeat ({error}); the run writes a new one") from None
    expected: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("pid", "step", "total"), (int,)),
        **dict.fromkeys(("host", "state"), (str,)),
        **dict.fromkeys(("time",), (int, float)),
        **dict.fromkeys(("loss", "images_per_second", "eta_seconds"), (int, float, type(None))),
        "process_start": (int, type(None)),
        "reason": (str, type(None)),
    }
    for key, kinds in expected.items():
        if not isinstance(found, dict) or not isinstance(found.get(key, ...), kinds):
            raise ValueError(f"{path}: not a heartbeat (no usable {key!r})")
    trouble = found.get("trouble", [])  # earlier versions knew none
    if not isinstance(trouble, list) or not all(isinstance(text, str) for text in trouble):
        raise ValueError(f"{path}: not a heartbeat (no usable 'trouble')")
    return {**{key: found[key] for key in expected}, "trouble": trouble}


def is_alive(beat: dict[str, Any]) -> bool | None:
    """Whether the process of a heartbeat still runs; None if it ran on another machine."""
    if beat["host"] != socket.gethostname():
        return None
    if beat["process_start"] is not None:
        # A process that has the number but began at another time is another one.
        return bool(process_start(beat["pid"]) == beat["process_start"])
    try:
        os.kill(beat["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # it runs, as another user
    return True


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if unknown or a zombie."""
    try:
        # The name, in parentheses, may have spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
