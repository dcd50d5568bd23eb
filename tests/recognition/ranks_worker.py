"""One rank of test_ranks.py: the trainer's own steps in every variant, then its losses and weights.

python ranks_worker.py FOLDER RANK PORT_OF_3 PORT_OF_2
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.augment import normalize
from data.types import Batch
from recognition import experiment, trainer
from recognition.config import Config
from recognition.distributed import Ranks, ranks_of_this_run
from recognition.parse import load_config
from recognition.teacher_vectors import TeacherSource
from tests.tools.peak_worker import Faces

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CLASSES, IMAGES, STEPS = 30, 36, 20  # IMAGES: of a micro-batch on all ranks
TAUGHT, WIDTH = 50, 16  # images that a teacher has embedded, and numbers per embedding
VARIANTS = {
    "full": ["classifier={name: full}"],
    "full, accumulated": ["classifier={name: full}", "optim.accumulation=2"],
    "full, fused": ["classifier={name: full, fused: true}"],
    "full, averaged": ["classifier={name: full}", "optim.ema=0.5"],
    "full, muon": ["classifier={name: full}", "optim.name=muon", "optim.accumulation=2"],
    "partial": ["classifier={name: partial, sample_rate: 0.4}"],
    "partial, accumulated": [
        "classifier={name: partial, sample_rate: 0.4}",
        "optim.accumulation=2",
    ],
    "class_pool": ["classifier={name: class_pool, size: 0.9}"],
    "semi_siamese": ["classifier={name: semi_siamese, size: 0.9, agents: 2}"],
    "partial, taught": [
        *("classifier={name: partial, sample_rate: 0.4}", "optim.accumulation=2"),
        *("teacher.centers=0.5", "teacher.cosine=2"),
    ],
}
PLAIN = (
    *("run.compile=false", "run.precision=fp32", "run.channels_last=false", "data.train=unused"),
    *("data.augment={flip: 0}", "data.size=32", "backbone={name: iresnet, depth: 18, width: 4}"),
    *("optim.nesterov=false", "optim.lr=0.02", "scheduler=fastface"),
)


def config_of(variant: str, world: int) -> Config:
    overrides = [*PLAIN, *VARIANTS[variant], f"optim.batch_size={IMAGES // world}"]
    if "taught" in variant:
        overrides.append("teacher.vectors=taught.npy")
    return load_config(ROOT / "configs/quickstart.yaml", overrides)


def batches_of(
    step: int, config: Config, ranks: Ranks
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """This rank's images, labels and image numbers of a step's micro-batches.

    Together the ranks have all.
    """
    draw = torch.Generator().manual_seed(step)
    found = []
    for _ in range(config.optim.accumulation):
        images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draw)
        labels = torch.randint(CLASSES, (IMAGES,), generator=draw)
        # The two halves share identities, and each rank gets a part of both.
        half = IMAGES // 2
        shared = half if config.classifier.name == "semi_siamese" else IMAGES // 3
        labels[half : half + shared] = labels[:shared]
        numbers = torch.randint(TAUGHT, (IMAGES,), generator=draw)
        parts = [
            torch.cat([own.chunk(ranks.world)[ranks.rank] for own in whole.chunk(2)])
            for whole in (images, labels, numbers)
        ]
        found.append((parts[0], parts[1], parts[2]))
    return found


def source_of(ranks: Ranks) -> TeacherSource:
    """Vectors that nobody's model has computed, in a file of this rank's own."""
    file = Path(sys.argv[1]) / f"taught-{ranks.rank}.npy"
    vectors = torch.randn(TAUGHT, WIDTH, generator=torch.Generator().manual_seed(7))
    np.save(file, vectors.float().numpy())
    return TeacherSource("taught", WIDTH, None, file)


def train(variant: str, ranks: Ranks) -> dict[str, torch.Tensor]:
    """In float64: the margin's scale of 64 makes differences of rounding grow from step to step."""
    config = config_of(variant, ranks.world)
    torch.set_default_dtype(torch.float64)
    source = source_of(ranks) if config.teacher.given else None
    parts = experiment.build_parts(config, Faces(CLASSES), CPU, ranks, source=source)
    torch.set_default_dtype(torch.float32)
    vars(trainer)["augment"] = lambda images, options, seed: normalize(images).double()
    assert isinstance(parts.classifier, nn.Module)
    for module in (*parts.backbone.modules(), *parts.classifier.modules()):
        if isinstance(module, _BatchNorm):
            module.eval()  # its statistics are each rank's own, and would differ
    losses, progress = [], trainer.Progress()
    for step in range(STEPS):
        own = batches_of(step, config, ranks)
        everyone = torch.cat([labels for _, labels, _ in batches_of(step, config, Ranks())])
        draw = parts.loader.draw
        sample = torch.from_numpy(draw(everyone.numpy(), 0, step)) if draw else None
        batches = [
            Batch(images, labels, sample if micro == 0 else None, indices=numbers.numpy())
            for micro, (images, labels, numbers) in enumerate(own)
        ]
        place = (step + 1) * IMAGES * config.optim.accumulation
        parts.loader.epoch, parts.loader.consumed = divmod(place, parts.loader.steps.epoch)
        before = progress.loss_sum
        trainer.optimizer_step(config, parts, batches, progress)
        losses.append(progress.loss_sum - before)
    state: dict[str, Any] = parts.classifier.state_dict()
    rows = {name: state[name] for name in parts.classifier.row_state if name in state}
    taught = parts.teacher.state_dict() if parts.teacher else {}
    if "centers" in taught:
        rows["teacher"] = taught["centers"]
    linear = taught.get("projection", {})
    gallery = ("pool.", "queue.", "agents.")
    shared = {name: value for name, value in state.items() if name.startswith(gallery)}
    averages = parts.average.state_dict() if parts.average else {}
    return {
        "losses": torch.stack([torch.as_tensor(loss) for loss in losses]),
        **{f"backbone.{name}": value for name, value in parts.backbone.state_dict().items()},
        **{f"average.{name}": value for name, value in averages.items()},
        **{f"rows.{name}": value for name, value in rows.items()},
        **shared,
        **{f"projection.{name}": value for name, value in linear.items()},
    }


def main(folder: str, rank: int, ports: list[str]) -> None:
    for world, port in zip((3, 2, 1), [*ports, ""], strict=True):
        if rank < world:
            os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "MASTER_PORT": port}
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            with ranks_of_this_run(CPU) as ranks:
                results = {name: train(name, ranks) for name in VARIANTS}
                torch.save(results, Path(folder) / f"{world}-{rank}.pt")
    # Leave without tearing Python down: a thread of gloo may still hold tensors.
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
