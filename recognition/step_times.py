"""Seconds of the parts of an optimizer step, without waiting for the device in it."""

import time
from itertools import pairwise

import torch

PARTS = ("forward_backward", "optimizer")


class StepTimes:
    """Marks in each step: its begin, the end of its backward passes, its end.

    On CUDA a mark is an event in the stream, and `read` waits for the last of them. On other
    devices it is the clock of the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Note that a part of a step begins or ends."""
        if not self._cuda:
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def read(self) -> dict[str, float]:
        """Seconds by part, of all steps since the last call."""
        if self._events:
            self._events[-1].synchronize()
            spans = [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._events)]
        else:
            spans = [after - before for before, after in pairwise(self._times)]
        self._times, self._events = [], []
        # Every third span lies between two steps.
        return {part: sum(spans[first::3]) for first, part in enumerate(PARTS)}
