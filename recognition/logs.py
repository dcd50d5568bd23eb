"""The logs of a run: lines on the terminal, metrics.jsonl, its trackers, and training.png.

recognition/heartbeat.py writes the file that says what the run is doing now, and
recognition/doctor.py finds what is wrong with it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data.files import atomic_write, naming
from data.text import one_line
from recognition.config import Config
from recognition.doctor import Doctor, Facts
from recognition.heartbeat import Heartbeat, heartbeat
from recognition.parse import to_tree
from recognition.parts import Parts
from recognition.run_folder import flat
from recognition.stop import Stopped
from recognition.trackers import TrackedRun
from recognition.tracking import Tracking, tracking

HISTOGRAMS = 100  # of the embeddings' lengths, at most, in a run
MARKED_POINTS = 60  # runs with at most so many log lines show each of them as a point
EVALUATION_SECONDS = 30  # between two lines about how far an evaluation is


@contextmanager
def open_logs(
    config: Config, folder: Path, parts: Parts, *, total_steps: int, first_step: int
) -> Iterator["RunLogs"]:
    """The logs of a run that starts or resumes at `first_step`; only rank 0 writes any."""
    if parts.ranks.rank != 0:
        yield RunLogs()
        return
    facts = Facts(
        total_steps=total_steps,
        chance_loss=parts.chance_loss,
        clip_norm=config.optim.clip_norm,
        threads=parts.loader.threads,
        cores=os.cpu_count() or 1,
    )
    run = TrackedRun(folder, flat(to_tree(config)), first_step)
    stops = (Stopped, KeyboardInterrupt)
    with (
        Console(total_steps, first_step) as console,
        Metrics(folder, first_step) as metrics,
        heartbeat(folder, total=total_steps, first=first_step, stops=(Stopped,)) as beat,
        tracking(config.run.trackers, run, console.say, stops) as trackers,
    ):
        doctor = Doctor(facts, read_metrics(folder))
        yield RunLogs(_Files(console, metrics, beat, doctor, trackers, total_steps))


@dataclass(frozen=True)
class RunLogs:
    """Where the lines of a run go: to the terminal, files and trackers, or nowhere."""

    files: "_Files | None" = None

    def stepped(self, step: int) -> None:
        """Tell the heartbeat that a step was made."""
        if self.files:
            self.files.beat.stepped(step)

    def doing(self, state: str) -> None:
        """Tell the heartbeat what the run does from now on: training, evaluating or saving."""
        if self.files:
            self.files.beat.doing(state)

    def log(self, step: int, line: dict[str, Any], norms: np.ndarray) -> None:
        """Log the figures of a window of training steps.

        norms: the lengths (N,) of the embeddings of a batch.
        """
        if self.files:
            self.files.log(step, line, norms)

    def evaluated(
        self,
        step: int,
        values: dict[str, float],
        figures: dict[str, float],
        pictures: Callable[[], Mapping[str, bytes]],
    ) -> None:
        """Log an evaluation. figures: others than those of `values`, such as the time it took.

        pictures: PNGs by name, for the trackers.
        """
        if self.files:
            self.files.evaluated(step, values, figures, pictures)


class _Files:
    """The logs of rank 0."""

    def __init__(
        self,
        console: "Console",
        metrics: "Metrics",
        beat: Heartbeat,
        doctor: Doctor,
        trackers: Tracking,
        total_steps: int,
    ) -> None:
        self.console, self.metrics, self.beat = console, metrics, beat
        self.doctor, self.trackers = doctor, trackers
        self._between, self._next_histogram = total_steps // HISTOGRAMS, 0

    def log(self, step: int, line: dict[str, Any], norms: np.ndarray) -> None:
        self.console.log(step, line)
        self._write(step, line)
        self.beat.logged(line["loss"], line["images_per_second"])
        if step >= self._next_histogram:
            self.trackers.histogram(step, "embedding_norms", norms)
            self._next_histogram = step + self._between

    def evaluated(
        self,
        step: int,
        values: dict[str, float],
        figures: dict[str, float],
        pictures: Callable[[], Mapping[str, bytes]],
    ) -> None:
        self.console.evaluated(step, values)
        self._write(step, {**figures, **values})
        if self.trackers:
            for name, png in pictures().items():
                self.trackers.picture(step, name, png)

    def _write(self, step: int, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, with what the doctor finds wrong, also told at once."""
        trouble, told = self.doctor.look({"step": step, **line})
        for text in told:
            self.console.say(f"warning: step {step}: {text}")
        self.beat.troubles(list(self.doctor.found.values()))
        self.metrics.write(step, {**line, "trouble": trouble} if trouble else line)
        self.trackers.scalars(step, line)


class Console:
    """Shows the log lines of a run of `total` steps that starts at step `first`.

    On a terminal it is a progress bar with the time left; in a file it is one line per log window.
    """

    def __init__(self, total: int, first: int) -> None:
        self._total, self._first = total, first
        self._began = time.perf_counter()
        self._bar: Any = None

    def __enter__(self) -> "Console":
        if sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                progress.BarColumn(bar_width=10),
                progress.TextColumn("ETA"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}"),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._first)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def log(self, step: int, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        loss, lr = f"loss {line['loss']:.4f}", f"lr {line['learning_rate']:.6f}"
        speed = f"{line['images_per_second']:.0f} images/s"
        if self._bar is not None:  # fits 80 columns
            self._bar.update(self._task, completed=step, description=f"{loss} {lr} {speed}")
        else:
            wait = f"data wait {line['data_wait']:.0%}"
            seconds_per_step = (time.perf_counter() - self._began) / max(step - self._first, 1)
            minutes, seconds = divmod(int((self._total - step) * seconds_per_step), 60)
            place = f"epoch {line['epoch']:.2f}  step {step}/{self._total}"
            eta = f"ETA {minutes}:{seconds:02d}"
            print(f"{place}  {loss}  {lr}  {speed}  {wait}  {eta}", flush=True)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """Show the accuracies of an evaluation; the other figures are in results.md."""
        accuracies = {name: value for name, value in values.items() if name.endswith("/accuracy")}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in (accuracies or values).items())
        self.say(f"step {step}: {shown or 'nothing to evaluate: evaluate.sets is empty'}")

    def say(self, text: str) -> None:
        """Show a line of text."""
        if self._bar is not None:
            self._bar.console.print(one_line(text), highlight=False, markup=False)
        else:
            print(one_line(text), flush=True)


@contextmanager
def evaluation_progress(total: int, *, name: str) -> Iterator[Callable[[int], None]]:
    """Tells on stdout that the images of a set are embedded, and now and then how many are done.

    It gives `advance(images)`. On a terminal, the lines stand above the progress bar of the run.
    """
    done, told = 0, time.monotonic()
    print(f"evaluate {name}: {total} images", flush=True)

    def advance(images: int) -> None:
        nonlocal done, told
        done += images
        if time.monotonic() - told >= EVALUATION_SECONDS:
            told = time.monotonic()
            print(f"evaluate {name}: {done} of {total} images done", flush=True)

    yield advance


class Metrics:
    """metrics.jsonl of a run.

    A resume drops the lines after `resumed_step`, because those steps are trained again. It also
    drops lines that are damaged, and says how many.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self._path = folder / "metrics.jsonl"
        lines, damaged = _read(self._path)
        if damaged:
            print(f"{self._path}: {damaged} damaged lines were removed", flush=True)
        kept = [line for line in lines if line["step"] <= resumed_step]
        with atomic_write(self._path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._file = open(self._path, "a")  # noqa: SIM115  closed by close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An error that ends the run is told, and not that of closing files which it may cause.
        with suppress(OSError) if error else nullcontext():
            self.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line."""
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        with naming(self._path):
            self._file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without those that a crash or a bad disk has damaged."""
    return _read(folder / "metrics.jsonl")[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a metrics.jsonl, and how many are damaged.

    A last line without its end is left out, and does not count as damaged: a crash cut it short.
    """
    if not path.exists():
        return [], 0
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
    whole = [found for line in lines if (found := _parsed(line)) is not None]
    return whole, len(lines) - len(whole)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("step")) is int else None


def plot_training(folder: Path) -> Path:
    """Plot loss, learning rate and, where the schedule has one, its signal: `training.png`."""
    from matplotlib.figure import Figure

    shown = ("loss", "learning_rate")
    lines = [
        line
        for line in read_metrics(folder)
        if all(isinstance(line.get(name), (int, float)) for name in shown)
    ]
    steps = [line["step"] for line in lines]
    signals = [
        (line["step"], line["schedule/signal"])
        for line in lines
        if line.get("schedule/signal") is not None
    ]
    # A line without a second point has no length, so the points of short runs are marked.
    style = {"marker": "o", "markersize": 3} if len(lines) <= MARKED_POINTS else {}
    figure = Figure(figsize=(8, 8 if signals else 6), layout="constrained")
    axes = figure.subplots(3 if signals else 2, 1, sharex=True)
    axes[0].plot(steps, [line["loss"] for line in lines], linewidth=0.8, **style)
    axes[0].set_ylabel("loss")
    axes[1].plot(steps, [line["learning_rate"] for line in lines], drawstyle="steps-post", **style)
    axes[1].set_ylabel("learning rate")
    if signals:
        threshold = [line.get("schedule/threshold") for line in lines]
        axes[2].plot(*zip(*signals, strict=True), linewidth=0.8, label="signal", **style)
        axes[2].plot(steps, threshold, linestyle="--", linewidth=0.8, label="threshold λ")
        axes[2].set_yscale("symlog", linthresh=1e-5)
        axes[2].legend()
        axes[2].set_ylabel("how fast the loss falls")
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    for axis in axes:
        axis.grid(alpha=0.3)
    path = folder / "training.png"
    figure.savefig(path, dpi=120)
    return path
