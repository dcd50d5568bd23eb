"""One rank of test_finite.py: rank 1 alone meets a bad loss, a bad gradient and bad weights.

python finite_worker.py FOLDER
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.faces import open_faces
from recognition import experiment, trainer
from recognition.distributed import Ranks, ranks_of_this_run
from recognition.finite import all_finite
from recognition.parse import load_config
from recognition.parts import CLASSIFIER_GROUP

CPU = torch.device("cpu")


def step_with(what: str, folder: Path, ranks: Ranks) -> str:
    config = load_config(folder / "small.yaml", [f"run.output={folder}", "optim.batch_size=6"])
    faces = open_faces(config.data.train, "auto")
    parts = experiment.build_parts(config, faces, CPU, ranks)
    assert isinstance(parts.classifier, nn.Module)
    if ranks.rank == 1 and what == "loss":
        # Its gradient is finite: a constant is added.
        parts.classifier.register_forward_hook(lambda *call: call[2] + torch.nan)
    if ranks.rank == 1 and what == "centers":
        (group,) = [g for g in parts.optimizer.param_groups if g["name"] == CLASSIFIER_GROUP]
        group["params"][0].register_hook(lambda gradient: gradient * torch.inf)

    def weights() -> list[torch.Tensor]:
        modules: list[Any] = [parts.backbone, parts.classifier]
        return [value.clone() for module in modules for value in module.state_dict().values()]

    before, progress = weights(), trainer.Progress()
    trainer.optimizer_step(config, parts, next(trainer._steps(parts.loader, config)), progress)
    progress.fetch()
    same = all(torch.equal(a, b) for a, b in zip(before, weights(), strict=True))
    return (
        f"{progress.skipped_steps} skipped, {progress.bad_losses_in_a_row} bad losses, "
        f"{'un' if same else ''}changed"
    )


def main(folder: str) -> None:
    with ranks_of_this_run(CPU) as ranks:
        for what in ("nothing", "loss", "centers"):
            print(f"{what}: {step_with(what, Path(folder), ranks)}")
        saved = torch.tensor([1.0, torch.inf if ranks.rank == 1 else 1.0])
        print(f"save: {'accepted' if all_finite(saved, ranks) else 'refused'}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
