"""Learning rates by name: what one step of SGD moves, and the groups that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.faces import open_faces
from recognition import experiment
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.optimizer import lr_factors
from recognition.parse import load_config
from recognition.parts import Parts
from recognition.trainer import train

SMALL = """
data: {train: "synthetic:identities=4,images=6", size: 32, threads: 1, augment: {flip: 0}}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8}
head: {name: arcface, scale: 16}
optim: {lr: 0.05, batch_size: 12, epochs: 2}
scheduler: {name: multi_step, milestones: [1]}
run: {output: unused, log_steps: 1, device: cpu}
"""


def _config(folder: Path, *overrides: str) -> Config:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return load_config(path, overrides)


def _parts(folder: Path, *overrides: str) -> Parts:
    config = _config(folder, *overrides)
    faces = open_faces(config.data.train, "auto")
    return experiment.build_parts(config, faces, torch.device("cpu"), Ranks())


def _tensors(parts: Parts) -> dict[str, torch.Tensor]:
    centers = parts.classifier.state_dict()["weight"]
    return {**parts.backbone.state_dict(), "centers": centers}


def _step(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """By how much one step moves each tensor."""
    overrides = (*overrides, "run.max_steps=1")
    parts = _parts(folder, *overrides)
    before = {name: value.clone() for name, value in _tensors(parts).items()}
    (folder / "run").mkdir(exist_ok=True)
    train(_config(folder, *overrides), parts, folder / "run", dict)
    return {name: value - before[name] for name, value in _tensors(parts).items()}


def test_factors_of_several_patterns_are_multiplied(tmp_path: Path) -> None:
    factors = "optim.lr_factors={'*.bias': 2, 'features.*': 5, centers: 7}"
    found = lr_factors(_config(tmp_path, factors).optim, _parts(tmp_path).backbone)
    names = ("features.bias", "fc.bias", "features.weight", "fc.weight")
    assert [found[name] for name in names] == [10, 2, 5, 1]


@pytest.mark.parametrize(
    "classifier",
    ["{name: full}", "{name: full, fused: true}", "{name: partial, sample_rate: 1}"],
)
def test_a_step_is_as_much_longer_as_its_factor(tmp_path: Path, classifier: str) -> None:
    choose = f"classifier={classifier}"
    plain = _step(tmp_path, choose)
    scaled = _step(tmp_path, choose, "optim.lr_factors={centers: 10, '*.bias': 2, 'fc.*': 0.5}")
    for name, moved in scaled.items():
        factor = 10.0 if name == "centers" else (2 if name.endswith(".bias") else 1)
        factor *= 0.5 if name.startswith("fc.") else 1
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(moved, factor * plain[name], rtol=1e-3, atol=1e-6)
    assert plain["centers"].abs().max() > 1e-3


def test_the_schedule_keeps_the_factors(tmp_path: Path) -> None:
    overrides = ["optim.lr_factors={centers: 10, 'fc.*': 0.5}", "optim.no_decay_1d=true"]
    parts = _parts(tmp_path, *overrides)
    (tmp_path / "run").mkdir()
    train(_config(tmp_path, *overrides), parts, tmp_path / "run", dict)
    groups = parts.optimizer.param_groups
    assert [(g["name"], round(g["lr"], 9), g["weight_decay"]) for g in groups] == [
        ("backbone", 0.005, 5e-4),
        ("backbone, no decay", 0.005, 0),
        ("backbone, lr × 0.5", 0.0025, 5e-4),
        ("backbone, no decay, lr × 0.5", 0.0025, 0),
        ("classifier", 0.05, 5e-4),
    ]
    assert sum(len(group["params"]) for group in groups[:4]) == len(
        list(parts.backbone.parameters())
    )
    assert [len(group["params"]) for group in groups[2:]] == [1, 1, 1]


def test_without_factors_the_groups_are_those_of_older_checkpoints(tmp_path: Path) -> None:
    """Their parameters have the numbers of `backbone.parameters()`, and then the centers'."""
    parts = _parts(tmp_path)
    (backbone, classifier) = parts.optimizer.param_groups
    assert (backbone["name"], classifier["name"]) == ("backbone", "classifier")
    assert [id(p) for p in backbone["params"]] == [id(p) for p in parts.backbone.parameters()]
