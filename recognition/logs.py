"""The logs of a run: lines on the terminal, metrics.jsonl and TensorBoard, and the plot of the
training."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from data.files import atomic_write


class Console:
    """Prints the log lines of a run of `total` steps that starts at step `first`.

    threads: those that decode, for advice when they are too few. quiet: print nothing.
    """

    def __init__(
        self, total: int, per_epoch: int, first: int, *, threads: int, quiet: bool
    ) -> None:
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def log(self, step: int, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        if self._quiet:
            return
        loss, rate = f"loss {line['loss']:.4f}", f"lr {line['learning_rate']:.6f}"
        speed, wait = (
            f"{line['images_per_second']:.0f} images/s",
            f"data wait {line['data_wait']:.0%}",
        )
        if self._bar is not None:  # fits 80 columns
            self._bar.update(self._task, completed=step, description=f"{loss} {rate} {speed}")
        else:
            text = f"{loss}  {rate}  {speed}  {wait}"
            left = (
                (self._total - step)
                * (time.perf_counter() - self._began)
                / max(step - self._first, 1)
            )
            minutes, seconds = divmod(int(left), 60)
            print(
                f"epoch {line['epoch']:.2f}  step {step}/{self._total}  {text}  ETA {minutes}:{seconds:02d}",
                flush=True,
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


def wait_advice(share: float, *, threads: int, cores: int) -> str | None:
    """One sentence on what to change when the share (0…1) of a run's time spent waiting for data is
    above a tenth."""
    if share <= 0.10:
        return None
    waited = f"{share:.0%} of the time went on waiting for data: "
    if threads < cores:
        return (
            waited + f"raise data.threads from {threads} towards the {cores} cores of this machine"
        )
    return waited + (
        "all cores decode already; store images at the size that is trained on (python -m tools.convert), or, "
        "if the cores are idle, move the set to a faster disk or take data.order=block"
    )


class Metrics:
    """metrics.jsonl and TensorBoard of a run. On a resume, lines after `resumed_step` are dropped:
    they come again."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= resumed_step]
        with atomic_write(self._path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._file = open(self._path, "a")  # noqa: SIM115  closed by close()
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl; every number of it also goes to TensorBoard under its own
        name."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without one that a crash cut short at the end."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def plot_training(folder: Path) -> Path:
    """Loss, learning rate and, where the schedule has one, its signal and threshold over steps:
    `training.png`."""
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(folder) if "loss" in line]
    steps = [line["step"] for line in lines]
    has_signal = any(line.get("schedule/signal") is not None for line in lines)
    figure = Figure(figsize=(8, 8 if has_signal else 6), layout="constrained")
    axes = figure.subplots(3 if has_signal else 2, 1, sharex=True)
    axes[0].plot(steps, [line["loss"] for line in lines], linewidth=0.8)
    axes[0].set_ylabel("loss")
    axes[1].plot(steps, [line["learning_rate"] for line in lines], drawstyle="steps-post")
    axes[1].set_ylabel("learning rate")
    if has_signal:
        signal = [
            (s, line["schedule/signal"])
            for s, line in zip(steps, lines, strict=True)
            if line.get("schedule/signal") is not None
        ]
        threshold = [line.get("schedule/threshold") for line in lines]
        axes[2].plot(*zip(*signal, strict=True), linewidth=0.8, label="signal")
        axes[2].plot(steps, threshold, linestyle="--", linewidth=0.8, label="threshold λ")
        axes[2].set_yscale("symlog", linthresh=1e-5)
        axes[2].legend()
        axes[2].set_ylabel("how fast the loss falls")
    axes[-1].set_xlabel("optimizer step")
    for axis in axes:
        axis.grid(alpha=0.3)
    path = folder / "training.png"
    figure.savefig(path, dpi=120)
    return path
