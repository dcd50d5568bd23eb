"""The training loop. It knows what each part does, but not which parts it was given.

A checkpoint holds all of a run's state: weights, optimizer, schedule, loss scale, position in the
data, and `Progress`. Random numbers come from seeds made of (run seed, step, micro-batch, rank), so
a resumed run computes the same numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.augment import augment
from data.fingerprint import difference, stored_fingerprint
from data.loader import Loader
from data.types import Batch
from recognition import checkpoint
from recognition.best_checkpoint import best_checkpoint, mark_best
from recognition.clock import Clock
from recognition.config import Config, ConfigError
from recognition.device import autocast, lay_out
from recognition.finite import Kept, Verdict, all_finite, check_step
from recognition.landmarks import with_landmarks
from recognition.logs import open_logs, read_metrics
from recognition.loss_scale import LOWEST
from recognition.memory import memory
from recognition.parse import to_yaml
from recognition.parts import CLASSIFIER_GROUP, TEACHER_GROUP, Parts
from recognition.seeds import seed_of
from recognition.seen import Seen
from recognition.stop import Agreement, Stop, Stopped

# Skipped steps in a row before a run gives up. The loss scale of fp16 reaches its floor before.
MOST_SKIPPED = 30
LEAST_LINES = 20  # log lines of a run, if it has so many steps


class TrainingError(RuntimeError):
    """Training can't usefully go on; the message says what to change."""


@dataclass
class Progress:
    """How far the run is. Its position is that of the loader, which counts in images.

    step: optimizer steps that were made, of whatever size. loss_sum, loss_count: finite losses
    since the last log line. steps: steps since then. clipped_steps: those of them whose gradient
    was clipped. seconds: time spent training. skipped_steps: all of the run. skipped_in_a_row,
    bad_losses_in_a_row: the last steps, up to now, that were skipped, and whose losses were not
    finite. gradient_norm: that of the last step's backbone gradient, before clipping.

    Counts stay on the device until the next log line: adding to them does not wait for the step.
    """

    step: int = 0
    loss_sum: float | torch.Tensor = 0.0
    loss_count: int | torch.Tensor = 0
    steps: int = 0
    skipped_steps: int | torch.Tensor = 0
    skipped_in_a_row: int | torch.Tensor = 0
    bad_losses_in_a_row: int | torch.Tensor = 0
    clipped_steps: int | torch.Tensor = 0
    gradient_norm: float | torch.Tensor = 0.0
    seconds: float = 0.0

    def add(
        self, loss: torch.Tensor, norm: torch.Tensor, verdict: Verdict, clip_norm: float | None
    ) -> None:
        """Count a step."""
        self.step += 1
        self.steps += 1
        self.loss_sum = self.loss_sum + torch.where(verdict.loss_finite, loss, 0.0)
        self.loss_count = self.loss_count + verdict.loss_finite
        self.skipped_steps = self.skipped_steps + ~verdict.taken
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * ~verdict.taken
        self.bad_losses_in_a_row = (self.bad_losses_in_a_row + 1) * ~verdict.loss_finite
        self.gradient_norm = norm
        if clip_norm is not None:
            self.clipped_steps = self.clipped_steps + (norm > clip_norm)

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
    stop: Stop | None = None,
    *,
    resume: bool = False,
    pictures: Callable[[], Mapping[str, bytes]] = dict,
) -> Progress:
    """Train to the end of `optim.epochs`, and write metrics and checkpoints into `folder`.

    `run.max_steps` may end the run earlier; that step then is its last one.

    evaluate: called on all ranks after every `evaluate.every_epochs` epochs and at the end, when
    the checkpoint is saved; it returns the metrics to log. stop: what asks the run to stop.
    resume: start from the newest checkpoint, and make up an evaluation that it misses. pictures:
    PNGs by name that show the last evaluation, for the trackers.

    A step whose loss or gradients are not finite is skipped. Raises TrainingError if too many of
    them follow each other, or if the weights are not finite. When a signal came it writes a
    checkpoint and raises Stopped, after the step on one rank, and within a few steps on several.
    """
    stop = stop or Stop()
    progress = restore(parts, folder) if resume else Progress()
    total = progress.step + parts.loader.steps.left(parts.loader.place, config.optim.epochs)
    if config.run.max_steps is not None:
        total = max(progress.step, min(total, config.run.max_steps))
    log_steps = min(config.run.log_steps, max(1, total // LEAST_LINES))
    owed = resume and _evaluation_owed(config, parts, progress, folder)
    agreement = Agreement(parts.ranks, parts.device)
    with open_logs(config, folder, parts, total_steps=total, first_step=progress.step) as logs:
        clock, seen = Clock(parts, logs.doing), Seen()

        def evaluate_now() -> None:
            values = clock.outside("evaluating", evaluate)
            mark_best(config, folder, values, parts.ranks)
            figures = _evaluation_figures(parts, clock)
            logs.evaluated(progress.step, values, figures, pictures)

        if owed:
            evaluate_now()
        for batches in islice(_steps(parts.loader, config), total - progress.step):
            last = progress.step + 1 == total
            logged = last or _due(progress.step + 1, log_steps)
            noting = seen if logged else None
            optimizer_step(config, parts, batches, progress, clock.times.mark, noting)
            stop.nothing_to_save = False
            logs.stepped(progress.step)
            epoch, epoch_ends = parts.loader.epoch, parts.loader.consumed == 0

            if logged:
                line, norms = _log_line(config, parts, progress, clock, seen)
                logs.log(progress.step, line, norms)
                _check_loss(config, progress, line, last=last)

            stops, saved = agreement.stops(stop), False
            if stops or epoch_ends or last or _due(progress.step, config.run.checkpoint_steps):
                saved = save(config, parts, folder, progress, clock, last=last)
            if stops:
                raise Stopped(f"stopped by {_name(stop)} at step {progress.step} of {total}")

            if saved and (last or (epoch_ends and _evaluation_due(config, epoch))):
                evaluate_now()
    return progress


def _name(stop: Stop) -> str:
    return stop.signal or "a signal to another process"


def optimizer_step(
    config: Config,
    parts: Parts,
    batches: list[Batch],
    progress: Progress,
    mark: Callable[[], None] = lambda: None,
    seen: Seen | None = None,
) -> None:
    """One step on the mean loss of the micro-batches, and one of the schedule on that loss.

    A step whose loss or gradients are not finite changes nothing but the loss scale and the
    progress (see recognition/finite.py). mark: called where the step begins, where its backward
    passes end, and where it ends. seen: notes the embeddings of the last micro-batch.
    """
    mark()
    loss = torch.zeros((), device=parts.device)
    statistics = Kept(parts.statistics)
    lr = parts.optimizer.param_groups[0]["lr"]
    parts.classifier.before_step(lr * parts.center_factor)
    for micro, batch in enumerate(batches):
        images, network = _network_input(config, parts, batch, progress.step, micro)
        # Only the last micro-batch's backward pass averages the sum of all gradients over ranks.
        last = micro == len(batches) - 1
        with nullcontext() if last else parts.no_sync():
            with autocast(parts.device, config.run.precision):
                forward = seen.noting(network, batch.labels) if seen else network
                mean = parts.loss(images, batch, forward)
            batch_loss = mean / len(batches)
            parts.loss_scale.scaled(batch_loss).backward()
        loss += batch_loss.detach()

    mark()
    norm, verdict = _prepare_gradients(config, parts, loss)
    known_loss = _step_if_taken(parts, loss, verdict.taken)
    if parts.average is not None:
        parts.average.update(parts.loader.steps.images, parts.loader.place, verdict.taken)
    parts.optimizer.zero_grad(set_to_none=True)
    statistics.put_back_unless(verdict.taken)
    parts.after_step(verdict.taken)
    parts.loss_scale.update(verdict.taken)
    parts.scheduler.advance(known_loss)
    progress.add(loss, norm, verdict, config.optim.clip_norm)
    mark()


def _network_input(
    config: Config, parts: Parts, batch: Batch, step: int, micro: int
) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
    """The images of a batch, augmented and normalized, and the network that gets them.

    It seeds the micro-batch's randomness. The network also gets the landmarks of a batch that has
    some, moved like its images.
    """
    seed = seed_of(config.run.seed, step, micro, parts.ranks.rank)
    torch.manual_seed(seed)  # for dropout and the like
    images = lay_out(batch.images, config.run.channels_last)
    options = config.data.augment.for_size(images.shape[-1], config.data.size)
    augmented = lay_out(augment(images, options, seed), config.run.channels_last)
    return augmented, with_landmarks(parts.forward, batch, options, seed)


def _prepare_gradients(
    config: Config, parts: Parts, loss: torch.Tensor
) -> tuple[torch.Tensor, Verdict]:
    """Unscale and clip the gradients. Returns the norm of the backbone's, and the verdict."""
    weights = list(parts.backbone.parameters())
    backbone = [p.grad for p in weights if p.grad is not None]
    beside = [
        weight.grad
        for group in parts.optimizer.param_groups
        if group["name"] in (CLASSIFIER_GROUP, TEACHER_GROUP)
        for weight in group["params"]
        if weight.grad is not None
    ]
    parts.loss_scale.unscale_([*backbone, *beside])

    norm = nn.utils.get_total_norm(backbone)
    others = [*beside, *parts.classifier.own_gradients()]
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
    """Whether the restored checkpoint ends an epoch or a trial whose evaluation is not logged.

    A signal or a crash has prevented it. Rank 0 reads the log and tells the others.
    """
    epoch, into_epoch = parts.loader.epoch, parts.loader.consumed
    epoch_ends = epoch > 0 and not into_epoch and _evaluation_due(config, epoch)
    if not epoch_ends and progress.step != config.run.max_steps:
        return False
    owed = parts.ranks.rank == 0 and not any(
        line["step"] == progress.step and "loss" not in line for line in read_metrics(folder)
    )
    return bool(parts.ranks.all_reduce_max(torch.full((), float(owed), device=parts.device)) > 0)


def _log_line(
    config: Config, parts: Parts, progress: Progress, clock: Clock, seen: Seen
) -> tuple[dict[str, Any], np.ndarray]:
    """One line of the logs, and the lengths of the embeddings that `seen` has noted.

    Only here does the loop wait for the device, to read the loss.
    """
    progress.fetch()
    loss = progress.loss_sum / progress.loss_count if progress.loss_count else math.nan
    elapsed, waited = clock.read()
    progress.seconds += elapsed
    images_per_step, place = parts.loader.steps.images, parts.loader.place
    line: dict[str, Any] = {
        "epoch": place / parts.loader.steps.epoch,
        "images": place,
        "loss": loss,
        "learning_rate": parts.optimizer.param_groups[0]["lr"],
        "gradient_norm": progress.gradient_norm,
        "skipped_steps": progress.skipped_steps,
        "images_per_second": progress.steps * images_per_step / elapsed,
        "data_wait": waited / elapsed,
        "seconds": progress.seconds,
        "cpu_seconds": clock.cpu_seconds(),
        "skipped_images": parts.loader.skipped,
    }
    if config.optim.clip_norm is not None:
        line["clipped"] = progress.clipped_steps / progress.steps
    if parts.loss_scale.enabled:
        line["loss_scale"] = parts.loss_scale.value()
    seconds = {"data": waited, **clock.times.read(), **clock.take_outside()}
    line |= {f"seconds/{part}": value for part, value in seconds.items()}
    line |= memory(parts.device)
    line |= parts.scheduler.log()
    line |= parts.teacher.log() if parts.teacher else {}
    line |= _learning_rates(parts)
    figures, norms = seen.measure()
    progress.loss_sum, progress.loss_count, progress.steps, progress.clipped_steps = 0.0, 0, 0, 0
    clock.restart()
    return {**line, **figures}, norms


def _learning_rates(parts: Parts) -> dict[str, float]:
    """The learning rate of each group of parameters, where they differ."""
    rates = {group["name"]: group["lr"] for group in parts.optimizer.param_groups}
    first = parts.optimizer.param_groups[0]["lr"]
    rates.setdefault(CLASSIFIER_GROUP, first * parts.center_factor)
    differ = set(rates.values()) != {first}
    return {f"learning_rate/{name}": rate for name, rate in rates.items()} if differ else {}


def _evaluation_figures(parts: Parts, clock: Clock) -> dict[str, float]:
    """What the logs say of an evaluation besides its results: when it was and what took time."""
    seconds = {f"seconds/{part}": value for part, value in clock.take_outside().items()}
    return {"epoch": float(parts.loader.epoch), "images": parts.loader.place, **seconds}


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
    raise TrainingError(f"{why}; {advice}; {_last_good(Path(config.run.output))}")


def _last_good(folder: Path) -> str:
    newest = checkpoint.newest(folder / "checkpoints")
    return f"the last finite checkpoint is {newest}" if newest else "no checkpoint was written"


def save(
    config: Config, parts: Parts, folder: Path, progress: Progress, clock: Clock, *, last: bool
) -> bool:
    """Write a checkpoint of everything, and the backbone's weights alone as model.pt.

    After a loss that is not finite nothing is written, because the weights may be the reason: the
    checkpoints on disk are better. The run's last step is saved even so. Returns whether the state
    was saved. Raises TrainingError if it is not finite.
    """
    progress.fetch()
    if progress.bad_losses_in_a_row and not last:
        if parts.ranks.rank == 0:
            print(
                f"step {progress.step}: not saved, because the loss is not finite; "
                f"{_last_good(folder)}",
                flush=True,
            )
        return False

    def write() -> None:
        shared, local = parts.state_dict()
        if not all_finite((shared, local), parts.ranks):
            raise TrainingError(
                f"the weights or the optimizer's state are not finite at step {progress.step}: "
                f"lower optim.lr; {_last_good(folder)}"
            )
        shared["progress"] = asdict(progress)
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

    clock.outside("saving", write)
    return True


def restore(parts: Parts, folder: Path) -> Progress:
    """Load the newest whole checkpoint of `folder`.

    A run without a checkpoint starts from the beginning, and says so. model.pt becomes that of the
    checkpoint.

    Raises ConfigError if there is no whole checkpoint, though one was saved, and for one of another
    training set or of other parts.
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
    _check_faces(found, parts)
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


def _check_faces(found: checkpoint.Loaded, parts: Parts) -> None:
    """Raise ConfigError if the run of a checkpoint trained on another set than this one."""
    if parts.fingerprint is None:
        return
    if "faces" not in found.shared:
        if parts.ranks.rank == 0:
            print(
                f"{found.path} has no fingerprint of its training set (an earlier version saved "
                "it): data.train is taken for the same set",
                flush=True,
            )
        return
    before = stored_fingerprint(found.shared["faces"])
    if what := difference(before, parts.fingerprint, parts.loader.faces):
        raise ConfigError(
            f"data.train: not the set that {found.path} was trained on: {what}; give that set, or "
            "start again in another folder"
        )
