"""Seconds of the parts of a step: sums over steps, without the time between them."""

import time
from typing import Any

import pytest
import torch

from recognition.step_times import StepTimes

# Begin, end of the backward passes, end, of three steps.
MARKS = (10.0, 13.0, 14.0, 100.0, 105.0, 105.5, 200.0, 200.25, 201.0)


def _check(times: StepTimes) -> None:
    for _ in MARKS[:6]:
        times.mark()
    assert times.read() == {"forward_backward": 8.0, "optimizer": 1.5}
    for _ in MARKS[6:]:
        times.mark()
    assert times.read() == {"forward_backward": 0.25, "optimizer": 0.75}
    assert times.read() == {"forward_backward": 0.0, "optimizer": 0.0}


def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(MARKS)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    _check(StepTimes(torch.device("cpu")))


def test_on_cuda_only_reading_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events stand in for those of CUDA; each is recorded at the next mark, in milliseconds."""
    clock, waited = iter(MARKS), []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = 1000 * next(clock)

        def synchronize(self) -> None:
            waited.append(self.at)

        def elapsed_time(self, other: Any) -> float:
            return float(other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    _check(StepTimes(torch.device("cuda")))
    assert waited == [105500.0, 201000.0]  # once per reading, for the last mark
