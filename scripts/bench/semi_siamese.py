"""Measures a training step of semi-siamese training beside the full classifier's, on one network.

    OMP_NUM_THREADS=1 python -m scripts.bench.semi_siamese --config configs/quickstart.yaml

Blocks of steps alternate between the variants in one process, on the same number of images. Figures
are medians of CPU time; ratios are those within the rounds, to the full classifier. `MB added` is
what the classifier keeps: gallery networks and queue, or centers and their momentum.
"""

import statistics
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from data.options import Count
from recognition import trainer
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.experiment import build_parts
from recognition.parse import load_config
from recognition.parts import Parts
from recognition.training_set import open_training_set
from scripts._tables import show_table
from scripts.bench._measure import in_turn, median_ratio
from tools._cli import command
from tools._need import facts_of, sizes_of

VARIANTS = {
    "full": ["classifier={name: full}"],
    "SST": ["classifier={name: semi_siamese}"],
    "SST, one way": ["classifier={name: semi_siamese, swap: false}"],
    "MASST, 2 agents": ["classifier={name: semi_siamese, agents: 2}"],
    "MASST, 4 agents": ["classifier={name: semi_siamese, agents: 4}"],
}


class Steps:
    """A variant's run, and batches that it trains on again and again."""

    def __init__(self, config: Config, steps: int) -> None:
        self.config, self.count = config, steps
        faces = open_training_set(config.data)
        self.parts: Parts = build_parts(config, faces, torch.device("cpu"), Ranks())
        self.progress = trainer.Progress()
        batches = list(islice(trainer._steps(self.parts.loader, config), steps))
        self.again = cycle(batches)
        sizes = sizes_of(config, faces.num_classes, ranks=1)
        self.kept = sum(facts_of(config.classifier.name).memory(config, sizes).kept.values())

    def seconds(self) -> float:
        """CPU seconds of one step, on average over a block."""
        start = time.process_time()
        for batches in islice(self.again, self.count):
            trainer.optimizer_step(self.config, self.parts, batches, self.progress)
        return (time.process_time() - start) / self.count


def run(
    *,
    config: Path = Path("configs/quickstart.yaml"),
    steps: Count = 5,
    rounds: Count = 9,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Compare the variants.

    config: a config file.
    steps: steps in a block.
    rounds: blocks of each variant, after one that warms up.
    overrides: changes of the config.
    """
    fixed = ["run.device=cpu", "run.compile=false", "run.output=unused"]
    runs = {
        name: Steps(load_config(config, [*fixed, *overrides, *classifier]), steps)
        for name, classifier in VARIANTS.items()
    }
    found = in_turn(runs, rounds + 1, lambda name: runs[name].seconds())
    timed = {name: seconds[1:] for name, seconds in found.items()}
    rows = [
        {
            "variant": name,
            "ms": 1e3 * statistics.median(seconds),
            "ratio": median_ratio(seconds, timed["full"]),
            "MB added": runs[name].kept / 1e6,
        }
        for name, seconds in timed.items()
    ]
    return {"rows": show_table(rows)}


main = command(run)
