"""Training on a GPU against the same training on a CPU. Without a GPU these tests are skipped."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch

from data.faces import open_faces
from recognition import trainer
from recognition.device import prepare_device
from recognition.distributed import Ranks
from recognition.experiment import build_parts
from recognition.parse import parse_config

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "fused": {"name": "full", "fused": True},
    "sub-centers": {"name": "full", "sub_centers": 2, "chunk": 5},
    "partial": {"name": "partial", "sample_rate": 0.5},
    "class_pool": {"name": "class_pool", "size": 0.8},
    "semi_siamese": {"name": "semi_siamese", "size": 0.8, "agents": 2},
}


def losses(device: str, classifier: str, **run: Any) -> list[float]:
    """The loss of each of some optimizer steps."""
    tree = {
        "data": {"train": "not read", "size": 32, "augment": {"flip": 0}},
        "backbone": {"name": "iresnet", "depth": 18, "width": 8, "embedding": 32},
        "head": {"name": "arcface", "margin": 0.3, "scale": 16},
        "classifier": CLASSIFIERS[classifier],
        "optim": {"lr": 0.02, "batch_size": 12, "epochs": 1},
        "scheduler": "constant",
        "run": {"output": "not written", **run},
    }
    config = parse_config(tree, "test")
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    prepare_device(config.run, place)
    faces = open_faces("synthetic:identities=20,images=8,size=32")
    parts = build_parts(config, faces, place, Ranks())
    progress, found = trainer.Progress(), []
    for batch in islice(parts.loader, 5):
        before = float(progress.loss_sum)
        trainer.optimizer_step(config, parts, [batch], progress)
        found.append(float(progress.loss_sum) - before)
    return found


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_float32_losses_are_those_of_a_cpu(classifier: str) -> None:
    assert losses("cuda", classifier) == pytest.approx(losses("cpu", classifier), rel=2e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("classifier", ["full", "partial", "class_pool", "semi_siamese"])
def test_losses_in_low_precision_are_near(classifier: str, precision: str) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")
    found = losses("cuda", classifier, precision=precision, channels_last=True)
    assert found[0] == pytest.approx(losses("cpu", classifier)[0], rel=0.05)
    assert all(math.isfinite(loss) for loss in found)


def test_a_compiled_step_is_near() -> None:
    compiled, eager = losses("cuda", "full", compile=True), losses("cuda", "full")
    assert compiled[:2] == pytest.approx(eager[:2], rel=1e-2)
