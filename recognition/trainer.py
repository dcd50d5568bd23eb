"""The training loop. It knows what each part does, but not which parts it was given.

A checkpoint holds all of a run's state: weights, optimizer, schedule, loss scale, position in the
data, and `Progress`. Random numbers come from seeds made of (run seed, step, micro-batch, rank), so
a resumed run computes the same numbers.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from data.augment import augment
from data.loader import Loader
from data.types import Batch
from recognition import checkpoint
from recognition.best_checkpoint import best_checkpoint, mark_best
from recognition.config import Config, ConfigError
from recognition.device import autocast, lay_out
from recognition.logs import open_logs, read_metrics
from recognition.parse import to_yaml
from recognition.parts import Parts
from recognition.seeds import seed_of
from recognition.stop import Agreement, Stop, Stopped

T = TypeVar("T")
BAD_WINDOWS = 10  # log windows in a row without a finite loss before a run gives up


class TrainingError(RuntimeError):
    """Training can't usefully go on; the message says what to change."""


@dataclass
class Progress:
    """How far the run is. Its position is that of the loader, which counts in images.

    step: optimizer steps that were made, of whatever size. loss_sum, loss_count: losses since the
    last log line. seconds: time spent training.
    """

    step: int = 0
    loss_sum: float | torch.Tensor = 0.0
    loss_count: int = 0
    skipped_steps: int = 0
    bad_windows: int = 0
    seconds: float = 0.0


def train(
    config: Config,
    parts: Parts,
    folder: Path,
    evaluate: Callable[[], dict[str, float]],
    stop: Stop | None = None,
    *,
    resume: bool = False,
) -> Progress:
    """Train to the end of `optim.epochs`, and write metrics and checkpoints into `folder`.

    evaluate: called on all ranks after every `evaluate.every_epochs` epochs and at the end, when
    the checkpoint is saved; it returns the metrics to log. stop: what asks the run to stop.
    resume: start from the newest checkpoint, and make up an evaluation that it misses.

    Raises TrainingError if the loss stays NaN or infinite. When a signal came it writes a
    checkpoint and raises Stopped, after the step on one rank, and within a few steps on several.
    """
    stop = stop or Stop()
    progress = restore(parts, folder) if resume else Progress()
    steps_left = parts.loader.steps.left(parts.loader.place, config.optim.epochs)
    total = progress.step + steps_left
    owed = resume and _evaluation_owed(config, parts, progress, folder)
    clock, agreement = _Clock(parts.loader), Agreement(parts.ranks, parts.device)
    with open_logs(folder, parts, total_steps=total, first_step=progress.step) as logs:

        def evaluate_now() -> None:
            values = clock.outside(evaluate)
            mark_best(config, folder, values, parts.ranks)
            logs.evaluated(progress.step, parts.loader.epoch, values)

        if owed:
            evaluate_now()
        for batches in islice(_steps(parts.loader, config), steps_left):
            optimizer_step(config, parts, batches, progress)
            stop.nothing_to_save = False
            epoch, epoch_ends = parts.loader.epoch, parts.loader.consumed == 0

            if _due(progress.step, config.run.log_steps) or progress.step == total:
                line = _log_line(config, parts, progress, clock)
                logs.log(progress.step, line)
                _check_loss(config, progress, line["loss"])

            stops = agreement.stops(stop)
            if stops or epoch_ends or _due(progress.step, config.run.checkpoint_steps):
                save(config, parts, folder, progress, clock)
            if stops:
                raise Stopped(f"stopped by {_name(stop)} at step {progress.step} of {total}")

            if epoch_ends and _evaluation_due(config, epoch):
                evaluate_now()
    return progress


def _name(stop: Stop) -> str:
    return stop.signal or "a signal to another process"


def optimizer_step(config: Config, parts: Parts, batches: list[Batch], progress: Progress) -> None:
    """One step on the mean loss of the micro-batches, and one of the schedule on that loss."""
    loss = torch.zeros((), device=parts.device)
    parts.classifier.before_step(parts.optimizer.param_groups[0]["lr"])
    for micro, batch in enumerate(batches):
        images = _network_input(config, parts, batch, progress.step, micro)
        # Only the last micro-batch's backward pass averages the sum of all gradients over ranks.
        last = micro == len(batches) - 1
        with nullcontext() if last else parts.no_sync():
            with autocast(parts.device, config.run.precision):
                mean = parts.classifier(parts.forward, images, batch.labels, batch.sample)
            batch_loss = mean / len(batches)
            parts.scaler.scale(batch_loss).backward()
        loss += batch_loss.detach()

    parts.scaler.unscale_(parts.optimizer)
    if config.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(parts.backbone.parameters(), config.optim.clip_norm)
    taken = _scaled_step(parts)
    parts.optimizer.zero_grad(set_to_none=True)
    if taken:
        parts.classifier.after_step()
    parts.scheduler.advance(loss if taken else None)

    progress.step += 1
    progress.skipped_steps += not taken
    # The sum stays on the device until the next log line: adding to it does not wait for the step.
    progress.loss_sum = progress.loss_sum + loss
    progress.loss_count += 1


def _network_input(
    config: Config, parts: Parts, batch: Batch, step: int, micro: int
) -> torch.Tensor:
    """The images of a batch, augmented and normalized. It seeds the micro-batch's randomness."""
    seed = seed_of(config.run.seed, step, micro, parts.ranks.rank)
    torch.manual_seed(seed)  # for dropout and the like
    images = lay_out(batch.images, config.run.channels_last)
    return lay_out(augment(images, config.data.augment, seed), config.run.channels_last)


def _scaled_step(parts: Parts) -> bool:
    """Step the optimizer unless the loss scaler found infinite gradients; return whether it did.

    A hook reports the step, because asking the scaler for its scale would wait once more. The
    scaler always calls a fused optimizer, which then finds `found_inf` and leaves the weights.
    """
    taken: list[bool] = []

    def report(optimizer: torch.optim.Optimizer, *_: object) -> None:
        found_inf: torch.Tensor | None = getattr(optimizer, "found_inf", None)
        taken.append(found_inf is None or not found_inf.item())

    hook = parts.optimizer.register_step_post_hook(report)
    parts.scaler.step(parts.optimizer)
    hook.remove()
    parts.scaler.update()
    return taken == [True]


def _steps(loader: Loader, config: Config) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step, epoch after epoch, without end."""
    size = config.optim.accumulation
    while True:
        epoch = iter(loader)
        while len(step := list(islice(epoch, size))) == size:
            yield step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluation_due(config: Config, epoch: int) -> bool:
    return epoch == config.optim.epochs or _due(epoch, config.evaluate.every_epochs)


def _evaluation_owed(config: Config, parts: Parts, progress: Progress, folder: Path) -> bool:
    """Whether the restored checkpoint ends an epoch whose evaluation is due and not logged.

    A signal or a crash has prevented it. Rank 0 reads the log and tells the others.
    """
    epoch, into_epoch = parts.loader.epoch, parts.loader.consumed
    if into_epoch or not epoch or not _evaluation_due(config, epoch):
        return False
    owed = parts.ranks.rank == 0 and not any(
        line["step"] == progress.step and "loss" not in line for line in read_metrics(folder)
    )
    return bool(parts.ranks.all_reduce_max(torch.full((), float(owed), device=parts.device)) > 0)


class _Clock:
    """Time since the last log line, and how much of it the loop waited for data."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        self._began, self._waited = time.perf_counter(), self._loader.wait_seconds

    def read(self) -> tuple[float, float]:
        """Seconds since the restart, and how many of them the loop waited for data."""
        return time.perf_counter() - self._began, self._loader.wait_seconds - self._waited

    def outside(self, action: Callable[[], T]) -> T:
        """What `action` returns; the time it takes does not count."""
        began = time.perf_counter()
        result = action()
        self._began += time.perf_counter() - began
        return result


def _log_line(config: Config, parts: Parts, progress: Progress, clock: _Clock) -> dict[str, Any]:
    """One line of the logs. Only here does the loop wait for the device, to read the loss."""
    loss = float(progress.loss_sum) / progress.loss_count
    elapsed, waited = clock.read()
    progress.seconds += elapsed
    images_per_step, place = parts.loader.steps.images, parts.loader.place
    line: dict[str, Any] = {
        "epoch": place / parts.loader.steps.epoch,
        "images": place,
        "loss": loss,
        "learning_rate": parts.optimizer.param_groups[0]["lr"],
        "images_per_second": progress.loss_count * images_per_step / elapsed,
        "data_wait": waited / elapsed,
        "seconds": progress.seconds,
        "skipped_images": parts.loader.skipped,
    }
    line |= parts.scheduler.log()
    if parts.scaler.is_enabled():
        line["loss_scale"] = parts.scaler.get_scale()
        line["skipped_steps"] = progress.skipped_steps
    progress.loss_sum, progress.loss_count = 0.0, 0
    clock.restart()
    return line


def _check_loss(config: Config, progress: Progress, loss: float) -> None:
    progress.bad_windows = 0 if math.isfinite(loss) else progress.bad_windows + 1
    if progress.bad_windows >= BAD_WINDOWS:
        fp32 = config.run.precision == "fp32"
        advice = "lower optim.lr" if fp32 else "lower optim.lr or use run.precision=bf16"
        raise TrainingError(
            f"the loss has been {loss} for {BAD_WINDOWS * config.run.log_steps} steps (now step "
            f"{progress.step}): {advice}; the checkpoints are in {config.run.output}"
        )


def save(config: Config, parts: Parts, folder: Path, progress: Progress, clock: _Clock) -> None:
    """Write a checkpoint of everything, and the backbone's weights alone as model.pt."""

    def write() -> None:
        shared, local = parts.state_dict()
        shared["progress"] = {**asdict(progress), "loss_sum": float(progress.loss_sum)}
        saved = checkpoint.save(
            folder / "checkpoints",
            progress.step,
            shared,
            local,
            parts.ranks,
            config=to_yaml(config),
            device=parts.device,
            keep=config.run.keep,
            spare=best_checkpoint(config, folder),
        )
        checkpoint.publish_model(saved, folder / "model.pt", parts.ranks, parts.device)

    clock.outside(write)


def restore(parts: Parts, folder: Path) -> Progress:
    """Load the newest whole checkpoint of `folder`.

    A run without a checkpoint starts from the beginning, and says so. model.pt becomes that of the
    checkpoint.

    Raises ConfigError if there is no whole checkpoint, though one was saved, and for one of other
    parts.
    """
    found = checkpoint.load_newest(folder / "checkpoints", parts.ranks, parts.device)
    if found is None:
        if (folder / "model.pt").exists():
            raise ConfigError(
                f"{folder} holds model.pt, but no checkpoint to resume from; restore "
                f"{folder / 'checkpoints'}, or start again in another folder"
            )
        if parts.ranks.rank == 0:
            print(f"{folder} has no checkpoint yet: the run starts from step 0", flush=True)
        return Progress()
    try:
        parts.load_state_dict(found.shared, found.locals_)
        progress = Progress(**found.shared["progress"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{found.path}: does not fit this config, data.train or version of the code ({first}); "
            "resume with those of config.yaml and environment.json"
        ) from error
    checkpoint.publish_model(found.path, folder / "model.pt", parts.ranks, parts.device)
    return progress
