"""Signals that ask a run to stop, and how its ranks agree to do so."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from fastface.pinned_copy import PinnedCopy
from recognition.distributed import Ranks

# SIGUSR1 is what Slurm sends before the time of a job ends, if it is told to.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
EXIT_CODE = 130
STEPS_BETWEEN = 4  # calls between two exchanges of the ranks


class Stopped(RuntimeError):
    """A signal asked the run to stop; what there was to save is saved."""


class Stop:
    """Whether a signal has asked this process to stop.

    signal: its name, or "" while there was none.
    nothing_to_save: then the signal itself raises Stopped, wherever the main thread is: opening
        files, building or compiling. Afterwards the training loop looks at `signal`.
    """

    def __init__(self) -> None:
        self.signal = ""
        self.nothing_to_save = True

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """What a signal does. A second one ends the process at once."""
        if self.signal:
            os.write(2, b"stopped at once by a second signal; the last checkpoint is whole\n")
            os._exit(EXIT_CODE)
        self.signal = signal.Signals(number).name
        if self.nothing_to_save:
            raise Stopped(f"stopped by {self.signal} before the first step; nothing new to save")


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A Stop that the signals set while the context lasts.

    Outside the main thread, signals are left as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """Lets all ranks stop at the same step, whichever of them a signal has reached.

    Each rank calls `stops` equally often. Alone, a rank stops at once. Several ranks exchange a
    flag in every fourth call; on CUDA it is read four calls later, when it has long arrived, so
    that no step waits for it.
    """

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self._calls = 0
        self._arriving: PinnedCopy | None = None

    def stops(self, stop: Stop) -> bool:
        """Whether all ranks stop now."""
        asked = bool(stop.signal)
        if self._ranks.world == 1:
            return asked
        self._calls += 1
        if self._calls % STEPS_BETWEEN:
            return False
        arrived = self._arriving is not None and self._arriving.value() > 0
        flag = self._ranks.all_reduce_max(torch.full((), float(asked), device=self._device))
        if self._device.type != "cuda":
            return float(flag) > 0
        self._arriving = self._arriving or PinnedCopy()
        self._arriving.start(flag)
        return arrived
