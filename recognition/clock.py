"""The clock of a training loop, for its log lines."""

import time
from collections.abc import Callable
from typing import TypeVar

from recognition.parts import Parts
from recognition.step_times import StepTimes

T = TypeVar("T")


class Clock:
    """Time since the last log line, what of it the loop waited for data, and time outside it."""

    def __init__(self, parts: Parts, doing: Callable[[str], None]) -> None:
        self._loader, self.times = parts.loader, StepTimes(parts.device)
        self._doing = doing
        self._outside: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._began, self._waited = time.perf_counter(), self._loader.wait_seconds
        self._began_cpu = time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds since the restart, and how many of them the loop waited for data."""
        return time.perf_counter() - self._began, self._loader.wait_seconds - self._waited

    def cpu_seconds(self) -> float:
        """CPU time of all threads of this process since the restart, whatever they did."""
        return time.process_time() - self._began_cpu

    def outside(self, state: str, action: Callable[[], T]) -> T:
        """What `action` returns; the time it takes does not count as training, but as `state`."""
        began = time.perf_counter()
        self._doing(state)
        result = action()
        self._doing("training")
        seconds = time.perf_counter() - began
        self._began += seconds
        self._outside[state] = self._outside.get(state, 0.0) + seconds
        return result

    def take_outside(self) -> dict[str, float]:
        """Seconds outside since the last call, by the state of the run."""
        taken, self._outside = self._outside, {}
        return taken
