"""Measures what a training step costs besides its arithmetic: checks, counts, times and logs.

    OMP_NUM_THREADS=1 python -m scripts.bench.trainer --config configs/quickstart.yaml

Blocks of steps alternate between the trainer and a bare loop in one process, on the same images.
The bare loop augments, computes the loss, goes backward, clips, steps and clears, and does nothing
else. The trainer's block also writes one line of the logs. Figures are medians of CPU time.
"""

import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.options import Count
from data.types import Batch
from recognition import trainer
from recognition.clock import Clock
from recognition.config import Config
from recognition.device import autocast
from recognition.distributed import Ranks
from recognition.experiment import build_parts
from recognition.logs import open_logs
from recognition.parse import load_config
from recognition.parts import Parts
from recognition.seen import Seen
from recognition.training_set import open_training_set
from scripts._tables import show_table
from scripts.bench._measure import median_ratio
from tools._cli import command

TAKEN = torch.tensor(True)


def bare_block(config: Config, parts: Parts, steps: list[list[Batch]]) -> float:
    """CPU seconds of the steps without anything that only the trainer does."""
    start = time.process_time()
    for number, batches in enumerate(steps):
        parts.classifier.before_step(parts.optimizer.param_groups[0]["lr"])
        for micro, batch in enumerate(batches):
            images, network = trainer._network_input(config, parts, batch, number, micro)
            with autocast(parts.device, config.run.precision):
                loss = parts.classifier(network, images, batch.labels, batch.sample)
            (loss / len(batches)).backward()
        if config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(parts.backbone.parameters(), config.optim.clip_norm)
        parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)
        parts.classifier.after_step(TAKEN)
        parts.scheduler.advance(loss.detach())
    return time.process_time() - start


def measure(config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step of both, and the ratio."""
    faces = open_training_set(config.data)
    device = torch.device("cpu")
    ours, bare = (build_parts(config, faces, device, Ranks()) for _ in range(2))
    copies = [
        [Batch(batch.images.clone(), batch.labels.clone(), batch.sample) for batch in batches]
        for batches in islice(trainer._steps(ours.loader, config), steps)
    ]
    again, progress, pairs = cycle(copies), trainer.Progress(), []
    with (
        tempfile.TemporaryDirectory() as folder,
        open_logs(
            config,
            Path(folder),
            ours,
            total_steps=steps * (rounds + 1),
            first_step=0,
        ) as logs,
    ):
        clock, seen = Clock(ours, logs.doing), Seen()

        def block() -> float:
            start = time.process_time()
            for number, batches in enumerate(islice(again, steps), 1):
                noting = seen if number == steps else None
                trainer.optimizer_step(config, ours, batches, progress, clock.times.mark, noting)
                logs.stepped(progress.step)
            line, norms = trainer._log_line(config, ours, progress, clock, seen)
            logs.log(progress.step, line, norms)
            return time.process_time() - start

        for _ in range(rounds + 1):
            pairs.append((block(), bare_block(config, bare, copies)))
    own, plain = zip(*pairs[1:], strict=True)  # the first round warms up
    return {
        "trainer_ms": 1e3 * statistics.median(own) / steps,
        "bare_ms": 1e3 * statistics.median(plain) / steps,
        "ratio": median_ratio(own, plain),
    }


def run(
    *,
    config: Path = Path("configs/quickstart.yaml"),
    steps: Count = 20,
    rounds: Count = 15,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Compare the trainer with a bare loop.

    config: a config file.
    steps: steps in a block, after which a line is logged.
    rounds: blocks of each.
    overrides: changes of the config, such as classifier=class_pool.
    """
    fixed = ["run.device=cpu", "run.compile=false", "run.output=unused"]
    found = measure(load_config(config, [*fixed, *overrides]), steps, rounds)
    show_table([{"config": config.name, **found}])
    return found


main = command(run)
