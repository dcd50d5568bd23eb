"""What a person sees while a run trains: a progress bar with an ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

from data.loader import wait_advice


class Console:
    """Prints the log lines of a run of `total` steps that starts at step `first`.

    threads: those that decode, for advice when they are too few. quiet: print nothing.
    """

    def __init__(self, total: int, per_epoch: int, first: int, *, threads: int, quiet: bool) -> None:
        self._total, self._per_epoch, self._first, self._quiet = total, per_epoch, first, quiet
        self._threads = threads
        self._began = time.perf_counter()
        self._advised_epoch = -1
        self._bar: Any = None

    def __enter__(self) -> Console:
        if not self._quiet and sys.stdout.isatty():
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def log(self, step: int, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        if self._quiet:
            return
        loss, rate = f"loss {line['loss']:.4f}", f"lr {line['learning_rate']:.6f}"
        speed, wait = f"{line['images_per_second']:.0f} images/s", f"data wait {line['data_wait']:.0%}"
        if self._bar is not None:  # fits 80 columns
            self._bar.update(self._task, completed=step, description=f"{loss} {rate} {speed}")
        else:
            text = f"{loss}  {rate}  {speed}  {wait}"
            left = (self._total - step) * (time.perf_counter() - self._began) / max(step - self._first, 1)
            minutes, seconds = divmod(int(left), 60)
            print(
                f"epoch {line['epoch']:.2f}  step {step}/{self._total}  {text}  ETA {minutes}:{seconds:02d}", flush=True
            )
        epoch = step // self._per_epoch
        advice = wait_advice(line["data_wait"], threads=self._threads, cores=os.cpu_count() or 1)
        if advice and epoch != self._advised_epoch:
            self._advised_epoch = epoch
            self.say(advice)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """Show the accuracies of an evaluation; the other figures are in results.md."""
        accuracies = {name: value for name, value in values.items() if name.endswith("/accuracy")}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in (accuracies or values).items())
        self.say(f"step {step}: {shown or 'nothing to evaluate: evaluate.sets is empty'}")

    def say(self, text: str) -> None:
        """Show a sentence."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)
