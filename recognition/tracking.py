"""Passes a run's figures and pictures to its trackers, each in a thread of its own.

A tracker may be slow or fail: the training neither waits for it nor ends. Its first error is told
with the next log line. At the end of the run it is told how much did not arrive.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data.parts import find_part
from data.text import one_line
from recognition.trackers import TRACKERS, End, TrackedRun, Tracker

MOST_WAITING = 1000  # calls that wait for a slow tracker; further ones are lost
CLOSE_SECONDS = 20.0  # that the end of a run waits for a tracker
LONGEST_ERROR = 300  # characters

Call = Callable[[Tracker], None]


class Tracking:
    """The trackers of a run. say: shows a line of text to the user."""

    def __init__(self, names: Sequence[str], run: TrackedRun, say: Callable[[str], None]) -> None:
        self._say = say
        self._workers = [_Worker(name, run) for name in names]
        self._told: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._workers)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Pass on those of the values that are numbers, and tell of trackers that have failed."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name != "epoch"
        }
        self._put(lambda tracker: tracker.scalars(step, numbers))
        for worker in self._workers:
            if worker.error and worker.name not in self._told:
                self._told.add(worker.name)
                self._say(
                    f"warning: run.trackers: {worker.name} fails ({worker.error}); the run goes "
                    "on, and metrics.jsonl has all figures"
                )

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Pass on values (N,), of which those that are not finite are left out."""
        finite = values[np.isfinite(values)]
        if len(finite):
            self._put(lambda tracker: tracker.histogram(step, name, finite))

    def picture(self, step: int, name: str, png: bytes) -> None:
        """Pass on a PNG."""
        self._put(lambda tracker: tracker.picture(step, name, png))

    def close(self, end: End) -> None:
        """End all trackers, and tell what did not arrive."""
        for worker in self._workers:
            worker.close(end)
        for worker in self._workers:
            if lost := worker.lost():
                cause = f": {worker.error}" if worker.error else " in time"
                self._say(
                    f"warning: run.trackers: {worker.name} did not get {lost} of {worker.calls} "
                    f"updates{cause}; metrics.jsonl has all figures"
                )

    def _put(self, call: Call) -> None:
        for worker in self._workers:
            worker.put(call)


class _Worker:
    """A tracker and its thread. error: the first one, as a line, or None."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self.name, self._run = name, run
        self.error: str | None = None
        self.calls, self._done = 0, 0
        self._waiting: queue.Queue[Call | None] = queue.Queue(MOST_WAITING)
        self._end: End = "finished"
        # A daemon, because a tracker that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Let the thread make the call, unless too many are waiting."""
        self.calls += 1
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self.error = self.error or f"it is too slow: {MOST_WAITING} updates wait for it"

    def close(self, end: End) -> None:
        """Wait until all calls were made, but not forever."""
        self._end = end
        self.calls += 1
        try:
            self._waiting.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(CLOSE_SECONDS)

    def lost(self) -> int:
        """Calls that failed, found no room, or are not yet made; the end of the run is one."""
        return self.calls - self._done

    def _work(self) -> None:
        tracker: Tracker | None = None
        module = find_part(TRACKERS, self.name)
        while True:
            call = self._waiting.get()
            if call is None and tracker is None:
                self._done += self.error is None
                return
            try:
                # A tracker that could not be opened is tried again: its server may come back.
                tracker = tracker or module.open_tracker(self._run)
                (call or self._close)(tracker)
                self._done += 1
            except Exception as error:
                text = one_line(f"{type(error).__name__}: {error}")
                self.error = self.error or text[:LONGEST_ERROR]
            if call is None:
                return

    def _close(self, tracker: Tracker) -> None:
        tracker.close(self._end)


@contextmanager
def tracking(
    names: Sequence[str],
    run: TrackedRun,
    say: Callable[[str], None],
    stops: tuple[type[BaseException], ...],
) -> Iterator[Tracking]:
    """The trackers of what happens inside, whose end they are told.

    stops: exceptions that mean that somebody stopped the run.
    """
    trackers = Tracking(names, run, say)
    end: End = "failed"
    try:
        yield trackers
        end = "finished"
    except stops:
        end = "stopped"
        raise
    finally:
        trackers.close(end)
