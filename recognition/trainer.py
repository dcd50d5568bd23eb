"""The training loop: reads top to bottom, holds no knowledge of which parts it was given.

State of a run, all of it in a checkpoint: weights, optimizer, schedule, loss scale, position in the
data, `Progress`. Random numbers are drawn from seeds made of (run seed, step, micro-batch, rank),
so nothing else needs saving and a resumed run computes the same numbers.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from data.augment import augment
from data.loader import Loader
from data.types import Batch
from recognition import checkpoint
from recognition.classifiers import Classifier
from recognition.classifiers._rows import own_share
from recognition.config import Config
from recognition.device import autocast
from recognition.distributed import Ranks
from recognition.logs import Console, Metrics
from recognition.schedulers import advance
from recognition.seeds import seed_of

_BAD_WINDOWS = 10  # log windows in a row without a finite loss before a run gives up


class TrainingError(RuntimeError):
    """The run can't usefully go on; the message says what to change."""


class Stopped(RuntimeError):
    """A signal asked the run to stop; its checkpoint is written."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of. `forward` is `backbone` behind DistributedDataParallel and
    compilation, where asked."""

    backbone: nn.Module
    forward: Callable[..., torch.Tensor]
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    loader: Loader
    device: torch.device
    ranks: Ranks


@dataclass
class Progress:
    """Where the run stands. loss_sum, loss_count: losses since the last log line. seconds: time
    spent training."""

    step: int = 0
    loss_sum: float | torch.Tensor = 0.0
    loss_count: int = 0
    skipped_steps: int = 0
    bad_windows: int = 0
    seconds: float = 0.0


def steps_per_epoch(config: Config, loader: Loader) -> int:
    """Optimizer steps an epoch; micro-batches that do not fill a step at its end are dropped."""
    return loader.steps_per_epoch // config.optim.accumulation


def train(
    config: Config,
    parts: Parts,
    folder: Path,
    evaluate: Callable[[int], dict[str, float]],
    *,
    resume: bool = False,
) -> Progress:
    """Train to the end of `optim.epochs`, writing metrics and checkpoints into `folder`.

    evaluate: called with the step on rank 0 after every `evaluate.every_epochs` epochs and at the
    end; returns the metrics to log. resume: start from the newest checkpoint. Raises TrainingError
    when the loss stays NaN or infinite, Stopped after a checkpoint when SIGTERM or SIGINT asked for
    it (looked at whenever a line is logged).
    """
    per_epoch = steps_per_epoch(config, parts.loader)
    total = per_epoch * config.optim.epochs
    progress, saved_step = (
        _restore(folder, parts, config.optim.accumulation) if resume else (Progress(), 0)
    )
    first = parts.ranks.rank == 0
    threads = parts.loader.threads
    with (
        _stop_requested() as stop,
        Console(total, per_epoch, progress.step, threads=threads, quiet=not first) as console,
    ):
        metrics = Metrics(folder, saved_step) if first else None
        clock = _Clock(parts.loader)
        while progress.step < total:
            for batches in _grouped(iter(parts.loader), config.optim.accumulation):
                _optimizer_step(config, parts, batches, progress)
                epoch, into_epoch = divmod(progress.step, per_epoch)
                if progress.step % config.run.log_steps == 0 or progress.step == total:
                    line = _log_line(config, parts, progress, per_epoch, clock)
                    console.log(progress.step, line)
                    if metrics:
                        metrics.write(progress.step, line)
                    _check_loss(config, progress, line["loss"])
                    asked = torch.tensor(float(stop.is_set()), device=parts.device)
                    if parts.ranks.all_reduce_max(asked) > 0:
                        _save(config, parts, folder, progress, clock)
                        raise Stopped(
                            f"stopped at step {progress.step} of {total}; go on with --resume"
                        )
                if into_epoch == 0 and metrics and _evaluation_due(config, epoch):
                    with clock.paused():
                        values = evaluate(progress.step)
                    console.evaluated(progress.step, values)
                    metrics.write(progress.step, {"epoch": float(epoch), **values})
                every = config.run.checkpoint_steps
                if into_epoch == 0 or (every and progress.step % every == 0):
                    _save(config, parts, folder, progress, clock)
        if metrics:
            metrics.close()
    return progress


def _optimizer_step(config: Config, parts: Parts, batches: list[Batch], progress: Progress) -> None:
    """One step of SGD on the mean loss of the micro-batches, and one of the schedule on the same
    loss."""
    optim, loss = config.optim, torch.zeros((), device=parts.device)
    parts.classifier.before_step(parts.optimizer.param_groups[0]["lr"])
    for micro, batch in enumerate(batches):
        seed = seed_of(config.run.seed, progress.step, micro, parts.ranks.rank)
        torch.manual_seed(seed)  # dropout and the like
        images = augment(
            batch.images.to(parts.device, non_blocking=True), config.data.augment, seed
        )
        if config.run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(parts.device, non_blocking=True)
        with autocast(parts.device, config.run.precision):
            part = parts.classifier(parts.forward, images, labels) / len(batches)
        parts.scaler.scale(part).backward()
        loss += part.detach()
    parts.scaler.unscale_(parts.optimizer)
    if optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(parts.backbone.parameters(), optim.clip_norm)
    skipped = not _scaled_step(parts)
    parts.optimizer.zero_grad(set_to_none=True)
    if not skipped:
        parts.classifier.after_step()
    advance(parts.scheduler, None if skipped else loss)
    progress.step += 1
    progress.skipped_steps += skipped
    # stays on the device until the next log line: no wait for it
    progress.loss_sum = progress.loss_sum + loss
    progress.loss_count += 1


def _scaled_step(parts: Parts) -> bool:
    """The optimizer's step unless the loss scaler found infinite gradients; whether it was taken.

    A hook tells, because asking the scaler for its scale would wait for the device.
    """
    taken: list[bool] = []
    hook = parts.optimizer.register_step_post_hook(lambda *_: taken.append(True))
    parts.scaler.step(parts.optimizer)
    hook.remove()
    parts.scaler.update()
    return bool(taken)


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while len(group := list(islice(batches, size))) == size:
        yield group


def _evaluation_due(config: Config, epoch: int) -> bool:
    every = config.evaluate.every_epochs
    return epoch == config.optim.epochs or (every > 0 and epoch % every == 0)


class _Clock:
    """Time since the last log line, without evaluation and saving, and how much of it was spent
    waiting for data."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        self._began, self._waited = time.perf_counter(), self._loader.wait_seconds

    def read(self) -> tuple[float, float]:
        """Seconds since the restart, and how many of them the loop waited for data."""
        return time.perf_counter() - self._began, self._loader.wait_seconds - self._waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        paused = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused


def _log_line(
    config: Config, parts: Parts, progress: Progress, per_epoch: int, clock: _Clock
) -> dict[str, Any]:
    """What metrics.jsonl, TensorBoard and the terminal are told; reading the loss is the one wait
    for the device."""
    loss = float(progress.loss_sum) / progress.loss_count
    elapsed, waited = clock.read()
    images = (
        progress.loss_count
        * config.optim.batch_size
        * config.optim.accumulation
        * parts.ranks.world
    )
    progress.seconds += elapsed
    line: dict[str, Any] = {
        "epoch": progress.step / per_epoch,
        "loss": loss,
        "learning_rate": parts.optimizer.param_groups[0]["lr"],
        "images_per_second": images / elapsed,
        "data_wait": waited / elapsed,
        "seconds": progress.seconds,
        "skipped_images": parts.loader.skipped,
    }
    for name in ("signal", "threshold", "decays"):
        if (value := getattr(parts.scheduler, name, None)) is not None:
            line[f"schedule/{name}"] = value
    if parts.scaler.is_enabled():
        line |= {"loss_scale": parts.scaler.get_scale(), "skipped_steps": progress.skipped_steps}
    progress.loss_sum, progress.loss_count = 0.0, 0
    clock.restart()
    return line


def _check_loss(config: Config, progress: Progress, loss: float) -> None:
    progress.bad_windows = 0 if math.isfinite(loss) else progress.bad_windows + 1
    if progress.bad_windows >= _BAD_WINDOWS:
        advice = (
            "lower optim.lr"
            if config.run.precision == "fp32"
            else "lower optim.lr or take run.precision=bf16"
        )
        raise TrainingError(
            f"the loss is {loss} since {_BAD_WINDOWS * config.run.log_steps} steps (now step {progress.step}): "
            f"{advice}; the checkpoints are in {config.run.output}"
        )


def _save(config: Config, parts: Parts, folder: Path, progress: Progress, clock: _Clock) -> None:
    """A checkpoint of everything, and the weights alone as model.pt."""
    with clock.paused():
        optimizer = parts.optimizer.state_dict()
        of_backbone = sum(1 for _ in parts.backbone.parameters())
        shared = {
            "backbone": parts.backbone.state_dict(),
            "optimizer_groups": optimizer["param_groups"],
            "optimizer": {k: v for k, v in optimizer["state"].items() if k < of_backbone},
            "scheduler": parts.scheduler.state_dict(),
            "scaler": parts.scaler.state_dict(),
            "loader": parts.loader.state_dict(),
            "progress": {**asdict(progress), "loss_sum": float(progress.loss_sum)},
        }
        local = {
            "classifier": parts.classifier.state_dict(),
            "optimizer": {k: v for k, v in optimizer["state"].items() if k >= of_backbone},
        }
        checkpoint.save(
            folder / "checkpoints", progress.step, shared, local, parts.ranks, config.run.keep
        )
        if parts.ranks.rank == 0:
            checkpoint.save_tensors(folder / "model.pt", shared["backbone"])


def _restore(folder: Path, parts: Parts, accumulation: int) -> tuple[Progress, int]:
    """Load the newest checkpoint of `folder` into the parts, and say at which step it was written.

    A run without one starts from the beginning. Another number of processes makes other steps of
    the same epoch: then the position in the data is kept and the step counted anew.
    """
    path = checkpoint.newest(folder / "checkpoints")
    if path is None:
        return Progress(), 0
    shared, locals_ = checkpoint.load(path)
    same_world = len(locals_) == parts.ranks.world
    local = locals_[parts.ranks.rank] if same_world else own_share(locals_, parts.classifier)
    parts.backbone.load_state_dict(shared["backbone"])
    parts.classifier.load_state_dict(local["classifier"])
    state = {**shared["optimizer"], **local["optimizer"]}
    parts.optimizer.load_state_dict({"state": state, "param_groups": shared["optimizer_groups"]})
    parts.scheduler.load_state_dict(shared["scheduler"])
    parts.scaler.load_state_dict(shared["scaler"])
    parts.loader.load_state_dict(shared["loader"])
    progress = Progress(**shared["progress"])
    saved_step = progress.step
    if not same_world:
        epoch, batch = parts.loader.position
        progress.step = (epoch * parts.loader.steps_per_epoch + batch) // accumulation
    return progress, saved_step


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set while the context lasts; a second SIGINT interrupts at
    once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
