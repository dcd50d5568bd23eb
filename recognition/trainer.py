"""The training loop. It knows what each part does, but not which parts it was given.

A checkpoint holds all of a run's state: weights, optimizer, schedule, loss scale, position in the
data, and `Progress`. Random numbers come from seeds made of (run seed, step, micro-batch, rank), so
a resumed run computes the same numbers.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import nn

from data.augment import augment
from data.loader import Loader
from data.types import Batch
from recognition import checkpoint
from recognition.config import Config
from recognition.device import autocast, lay_out
from recognition.finite import Kept, Verdict, all_finite, check_step
from recognition.logs import open_logs
from recognition.loss_scale import LOWEST
from recognition.memory import memory
from recognition.parts import CLASSIFIER_GROUP, Parts
from recognition.schedulers import advance, schedule_log
from recognition.seeds import seed_of
from recognition.step_times import StepTimes

T = TypeVar("T")
# Skipped steps in a row before a run gives up. The loss scale of fp16 reaches its floor before.
MOST_SKIPPED = 30


class TrainingError(RuntimeError):
    """Training can't usefully go on; the message says what to change."""


class Stopped(RuntimeError):
    """A signal asked the run to stop; its checkpoint is written."""


@dataclass
class Progress:
    """Where the run stands.

    loss_sum, loss_count: finite losses since the last log line. steps: steps since then. seconds:
    time spent training. skipped_steps: all of the run. skipped_in_a_row, bad_losses_in_a_row: the
    last steps, up to now, that were skipped, and whose losses were not finite. gradient_norm: that
    of the last step's backbone gradient, before clipping.

    Counts stay on the device until the next log line: adding to them does not wait for the step.
    """

    step: int = 0
    loss_sum: float | torch.Tensor = 0.0
    loss_count: int | torch.Tensor = 0
    steps: int = 0
    skipped_steps: int | torch.Tensor = 0
    skipped_in_a_row: int | torch.Tensor = 0
    bad_losses_in_a_row: int | torch.Tensor = 0
    gradient_norm: float | torch.Tensor = 0.0
    seconds: float = 0.0

    def add(self, loss: torch.Tensor, norm: torch.Tensor, verdict: Verdict) -> None:
        """Count a step."""
        self.step += 1
        self.steps += 1
        self.loss_sum = self.loss_sum + torch.where(verdict.loss_finite, loss, 0.0)
        self.loss_count = self.loss_count + verdict.loss_finite
        self.skipped_steps = self.skipped_steps + ~verdict.taken
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * ~verdict.taken
        self.bad_losses_in_a_row = (self.bad_losses_in_a_row + 1) * ~verdict.loss_finite
        self.gradient_norm = norm

    def fetch(self) -> None:
        """Bring what is on the device to the CPU. It waits for the last step."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.item())


def train(
    config: Config,
    parts: Parts,
    folder: Path,
    evaluate: Callable[[], dict[str, float]],
    *,
    resume: bool = False,
) -> Progress:
    """Train to the end of `optim.epochs`, and write metrics and checkpoints into `folder`.

    evaluate: called on all ranks after every `evaluate.every_epochs` epochs and at the end; it
    returns the metrics to log. resume: start from the newest checkpoint.

    A step whose loss or gradients are not finite is skipped. Raises TrainingError if too many of
    them follow each other, or if the weights are not finite. After SIGTERM or SIGINT it writes a
    checkpoint and raises Stopped; a signal is noticed when the next line is logged.
    """
    total = parts.steps_per_epoch * config.optim.epochs
    progress, saved_step = restore(parts, folder, config) if resume else (Progress(), 0)
    steps_left = max(total - progress.step, 0)
    with (
        stop_requested() as stop,
        open_logs(
            folder,
            parts,
            total_steps=total,
            first_step=progress.step,
            saved_step=saved_step,
            stops=(Stopped,),
        ) as logs,
    ):
        clock = _Clock(parts, logs.doing)
        for batches in islice(_steps(parts.loader, config), steps_left):
            optimizer_step(config, parts, batches, progress, clock.times.mark)
            logs.stepped(progress.step)
            epoch, into_epoch = divmod(progress.step, parts.steps_per_epoch)
            epoch_ends = into_epoch == 0

            window_ends = _due(progress.step, config.run.log_steps) or progress.step == total
            if window_ends:
                line = _log_line(config, parts, progress, clock)
                logs.log(progress.step, line)
                _check_loss(config, progress, line, last=progress.step == total)
            if window_ends and _any_rank_stops(parts, stop):
                save(config, parts, folder, progress, clock)
                raise Stopped(f"stopped at step {progress.step} of {total}; use --resume")

            if epoch_ends and _evaluation_due(config, epoch):
                values = clock.outside("evaluating", evaluate)
                logs.evaluated(progress.step, epoch, values, clock.take_outside())

            if epoch_ends or _due(progress.step, config.run.checkpoint_steps):
                save(config, parts, folder, progress, clock)
    return progress


def optimizer_step(
    config: Config,
    parts: Parts,
    batches: list[Batch],
    progress: Progress,
    mark: Callable[[], None] = lambda: None,
) -> None:
    """One step on the mean loss of the micro-batches, and one of the schedule on that loss.

    A step whose loss or gradients are not finite changes nothing but the loss scale and the
    progress (see recognition/finite.py). mark: called where the step begins, where its backward
    passes end, and where it ends.
    """
    mark()
    loss = torch.zeros((), device=parts.device)
    statistics = Kept(parts.statistics)
    parts.classifier.before_step(parts.optimizer.param_groups[0]["lr"])
    for micro, batch in enumerate(batches):
        images = _network_input(config, parts, batch, progress.step, micro)
        # Only the last micro-batch's backward pass averages the sum of all gradients over ranks.
        last = micro == len(batches) - 1
        with nullcontext() if last else parts.no_sync():
            with autocast(parts.device, config.run.precision):
                mean = parts.classifier(parts.forward, images, batch.labels, batch.sample)
            batch_loss = mean / len(batches)
            parts.loss_scale.scaled(batch_loss).backward()
        loss += batch_loss.detach()

    mark()
    norm, verdict = _prepare_gradients(config, parts, loss)
    known_loss = _step_if_taken(parts, loss, verdict.taken)
    parts.optimizer.zero_grad(set_to_none=True)
    statistics.put_back_unless(verdict.taken)
    parts.classifier.after_step(verdict.taken)
    parts.loss_scale.update(verdict.taken)
    advance(parts.scheduler, known_loss)
    progress.add(loss, norm, verdict)
    mark()


def _network_input(
    config: Config, parts: Parts, batch: Batch, step: int, micro: int
) -> torch.Tensor:
    """The images of a batch, augmented and normalized. It seeds the micro-batch's randomness."""
    seed = seed_of(config.run.seed, step, micro, parts.ranks.rank)
    torch.manual_seed(seed)  # for dropout and the like
    images = lay_out(batch.images, config.run.channels_last)
    return lay_out(augment(images, config.data.augment, seed), config.run.channels_last)


def _prepare_gradients(
    config: Config, parts: Parts, loss: torch.Tensor
) -> tuple[torch.Tensor, Verdict]:
    """Unscale and clip the gradients. Returns the norm of the backbone's, and the verdict."""
    weights = list(parts.backbone.parameters())
    backbone = [p.grad for p in weights if p.grad is not None]
    classes = next((g for g in parts.optimizer.param_groups if g["name"] == CLASSIFIER_GROUP), None)
    centers = [p.grad for p in classes["params"] if p.grad is not None] if classes else []
    parts.loss_scale.unscale_([*backbone, *centers])

    norm = nn.utils.get_total_norm(backbone)
    others = [*centers, *parts.classifier.own_gradients()]
    norms = [norm, *(torch._foreach_norm(others) if others else ())]
    verdict = check_step(loss, norms, parts.ranks)
    if config.optim.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(weights, config.optim.clip_norm, norm)
    return norm, verdict


def _step_if_taken(parts: Parts, loss: torch.Tensor, taken: torch.Tensor) -> torch.Tensor | None:
    """Step the optimizer if `taken`. Returns the loss for the schedule, None for a skipped step.

    A fused optimizer skips the step by itself, and the CPU does not know it yet. The loss is NaN
    then, which schedules leave out as well.
    """
    if parts.optimizer.defaults["fused"]:
        vars(parts.optimizer)["found_inf"] = (~taken).float()
        parts.optimizer.step()
        return torch.where(taken, loss, torch.nan)
    if not taken:
        return None
    parts.optimizer.step()
    return loss


def _steps(loader: Loader, config: Config) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step, epoch after epoch, without end.

    Micro-batches that do not fill a step at the end of an epoch are dropped.
    """
    size = config.optim.accumulation
    while True:
        epoch = iter(loader)
        while len(step := list(islice(epoch, size))) == size:
            yield step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluation_due(config: Config, epoch: int) -> bool:
    return epoch == config.optim.epochs or _due(epoch, config.evaluate.every_epochs)


def _any_rank_stops(parts: Parts, stop: threading.Event) -> bool:
    asked = torch.tensor(float(stop.is_set()), device=parts.device)
    return bool(parts.ranks.all_reduce_max(asked) > 0)


class _Clock:
    """Time since the last log line, what of it the loop waited for data, and time outside it."""

    def __init__(self, parts: Parts, doing: Callable[[str], None]) -> None:
        self._loader, self.times = parts.loader, StepTimes(parts.device)
        self._doing = doing
        self._outside: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._began, self._waited = time.perf_counter(), self._loader.wait_seconds

    def read(self) -> tuple[float, float]:
        """Seconds since the restart, and how many of them the loop waited for data."""
        return time.perf_counter() - self._began, self._loader.wait_seconds - self._waited

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


def _log_line(config: Config, parts: Parts, progress: Progress, clock: _Clock) -> dict[str, Any]:
    """One line of the logs. Only here does the loop wait for the device, to read the loss."""
    progress.fetch()
    loss = progress.loss_sum / progress.loss_count if progress.loss_count else math.nan
    elapsed, waited = clock.read()
    progress.seconds += elapsed
    images_per_step = parts.loader.global_batch * config.optim.accumulation
    line: dict[str, Any] = {
        "epoch": progress.step / parts.steps_per_epoch,
        "loss": loss,
        "learning_rate": parts.optimizer.param_groups[0]["lr"],
        "gradient_norm": progress.gradient_norm,
        "skipped_steps": progress.skipped_steps,
        "images_per_second": progress.steps * images_per_step / elapsed,
        "data_wait": waited / elapsed,
        "seconds": progress.seconds,
        "skipped_images": parts.loader.skipped,
    }
    if parts.loss_scale.enabled:
        line["loss_scale"] = parts.loss_scale.value()
    seconds = {"data": waited, **clock.times.read(), **clock.take_outside()}
    line |= {f"seconds/{part}": value for part, value in seconds.items()}
    line |= memory(parts.device)
    line |= schedule_log(parts.scheduler)
    progress.loss_sum, progress.loss_count, progress.steps = 0.0, 0, 0
    clock.restart()
    return line


def _check_loss(config: Config, progress: Progress, line: dict[str, Any], *, last: bool) -> None:
    """TrainingError if steps are skipped again and again; one bad step is no reason to end a run.

    last: this was the run's last step, so that no later one can show that it goes on.
    """
    skipped, bad = int(progress.skipped_in_a_row), int(progress.bad_losses_in_a_row)
    lowest = line.get("loss_scale") == LOWEST and skipped > 0
    if not (lowest or skipped >= MOST_SKIPPED or (last and bad > 1)):
        return
    why = f"the last {skipped} steps had no finite loss or gradient (now step {progress.step})"
    if lowest:
        why += (
            f", although the loss scale of fp16 fell to {LOWEST:.3g}: the numbers are too large "
            "for fp16, whatever the scale"
        )
    fp32 = config.run.precision == "fp32"
    advice = "lower optim.lr" if fp32 else "lower optim.lr or use run.precision=bf16"
    raise TrainingError(f"{why}; {advice}; {_last_good(config)}")


def _last_good(config: Config) -> str:
    newest = checkpoint.newest(Path(config.run.output) / "checkpoints")
    return f"the last finite checkpoint is {newest}" if newest else "no checkpoint was written"


def save(config: Config, parts: Parts, folder: Path, progress: Progress, clock: _Clock) -> None:
    """Write a checkpoint of everything, and the backbone's weights alone as model.pt.

    After a loss that is not finite nothing is written, because the weights may be the reason: the
    checkpoints on disk are better. The run's last step is saved even so. Raises TrainingError if
    the state is not finite.
    """
    progress.fetch()
    ends = progress.step == parts.steps_per_epoch * config.optim.epochs
    if progress.bad_losses_in_a_row and not ends:
        if parts.ranks.rank == 0:
            print(
                f"step {progress.step}: not saved, because the loss is not finite; "
                f"{_last_good(config)}",
                flush=True,
            )
        return

    def write() -> None:
        shared, local = parts.state_dict()
        if not all_finite((shared, local), parts.ranks):
            raise TrainingError(
                f"the weights or the optimizer's state are not finite at step {progress.step}: "
                f"lower optim.lr; {_last_good(config)}"
            )
        shared["progress"] = asdict(progress)
        checkpoint.save(
            folder / "checkpoints", progress.step, shared, local, parts.ranks, config.run.keep
        )
        if parts.ranks.rank == 0:
            checkpoint.save_tensors(folder / "model.pt", shared["backbone"])

    clock.outside("saving", write)


def restore(parts: Parts, folder: Path, config: Config) -> tuple[Progress, int]:
    """Load the newest checkpoint of `folder`; return the progress and the step of its saving.

    A run without a checkpoint starts from the beginning. With another number of processes an epoch
    has another number of steps: then the step is computed from the position in the data.
    """
    path = checkpoint.newest(folder / "checkpoints")
    if path is None:
        return Progress(), 0
    shared, locals_ = checkpoint.load(path)
    parts.load_state_dict(shared, locals_)
    known = {field.name for field in fields(Progress)}  # older versions saved other ones as well
    saved = shared["progress"]
    progress = Progress(**{name: saved[name] for name in known & saved.keys()})
    saved_step = progress.step
    if len(locals_) != parts.ranks.world:
        epoch, batch = parts.loader.position
        batches = epoch * parts.loader.steps_per_epoch + batch
        progress.step = batches // config.optim.accumulation
    return progress, saved_step


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set while the context lasts.

    A second SIGINT interrupts at once. Outside the main thread, signals are left as they are.
    """
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
