"""Training on a GPU against the same training on a CPU. Without a GPU these tests are skipped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import recognition
import train
from data.faces import open_faces
from recognition import trainer
from recognition.config import Config
from recognition.device import prepare_device
from recognition.distributed import Ranks
from recognition.experiment import build_parts
from recognition.parse import parse_config
from recognition.parts import Parts
from tests.backbones import backbone_text, installed_backbones

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device and pytest -m cuda"
    ),
]
FACES = "synthetic:identities=20,images=8,size=32"
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "fused": {"name": "full", "fused": True},
    "sub-centers": {"name": "full", "sub_centers": 2, "chunk": 5},
    "partial": {"name": "partial", "sample_rate": 0.5},
    "class_pool": {"name": "class_pool", "size": 0.8},
    "semi_siamese": {"name": "semi_siamese", "size": 0.8, "agents": 2},
}
LR = 0.001
"""So small that rounding stays small: at 0.02 a change of 1e-6 in the weights grows to 1e-2 in the
loss of the fifth step, on a CPU alone."""


def make(
    device: str, classifier: str, *, optim: dict[str, Any] | None = None, **sections: Any
) -> tuple[Config, Parts]:
    """The parts of a small run on the device. sections: keys of `run`, or whole other sections."""
    backbone = sections.pop("backbone", {"name": "iresnet", "depth": 18, "width": 8})
    size = 32 if backbone["name"] == "iresnet" else 112
    tree = {
        "data": {"train": "not read", "size": size, "augment": {"flip": 0}},
        "backbone": {**backbone, "embedding": 32},
        "head": {"name": "arcface", "margin": 0.3, "scale": 16},
        "classifier": CLASSIFIERS[classifier],
        "optim": {"lr": LR, "batch_size": 12, "epochs": 1, **(optim or {})},
        "scheduler": "constant",
        "run": {"output": "not written", **sections},
    }
    config = parse_config(tree, "test")
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    prepare_device(config.run, place)
    return config, build_parts(config, open_faces(FACES), place, Ranks())


def losses(device: str, classifier: str, **options: Any) -> list[float]:
    """The loss of each of some optimizer steps."""
    config, parts = make(device, classifier, **options)
    progress, found = trainer.Progress(), []
    for batch in islice(parts.loader, 5):
        before = float(progress.loss_sum)
        trainer.optimizer_step(config, parts, [batch], progress)
        found.append(float(progress.loss_sum) - before)
    return found


@contextmanager
def waiting_raises() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def skip_without(precision: str) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_float32_losses_are_those_of_a_cpu(classifier: str) -> None:
    assert losses("cuda", classifier) == pytest.approx(losses("cpu", classifier), rel=5e-4)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_steps_of_other_optimizers_are_those_of_a_cpu(optimizer: str) -> None:
    optim = {"name": optimizer}
    # Muon's iterations are in bf16 on a GPU.
    expected = losses("cpu", "full", optim=optim)
    assert losses("cuda", "full", optim=optim) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("classifier", ["full", "partial", "class_pool", "semi_siamese"])
def test_losses_in_low_precision_are_near(classifier: str, precision: str) -> None:
    skip_without(precision)
    found = losses("cuda", classifier, precision=precision, channels_last=True)
    assert found[0] == pytest.approx(losses("cpu", classifier)[0], rel=0.05)
    assert all(math.isfinite(loss) for loss in found)


def test_a_compiled_step_is_near() -> None:
    compiled, eager = losses("cuda", "full", compile=True), losses("cuda", "full")
    assert compiled == pytest.approx(eager, rel=1e-2)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_step_in_fp16_is_near(mode: str) -> None:
    eager = losses("cuda", "full", precision="fp16")
    compiled = losses("cuda", "full", precision="fp16", compile=True, compile_mode=mode)
    assert compiled == pytest.approx(eager, rel=5e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_no_step_waits_for_the_gpu(classifier: str, precision: str) -> None:
    """What tests/recognition/waits finds on fake tensors, on real ones."""
    skip_without(precision)
    if (classifier, precision) == ("fused", "fp16"):
        pytest.skip("refused by the config check")
    check_waits(*make("cuda", classifier, precision=precision, channels_last=True))


@pytest.mark.parametrize("backbone", installed_backbones())
def test_no_step_of_a_backbone_waits(backbone: str) -> None:
    skip_without("bf16")
    given = yaml.safe_load(backbone_text(backbone))
    check_waits(*make("cuda", "full", precision="bf16", channels_last=True, backbone=given))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_no_step_of_an_optimizer_waits(optimizer: str) -> None:
    check_waits(*make("cuda", "full", precision="fp16", optim={"name": optimizer, "ema": 0.5}))


def check_waits(config: Config, parts: Parts) -> None:
    progress = trainer.Progress()
    batches = list(islice(parts.loader, 6))
    for batch in batches[:3]:  # the first steps choose kernels and allocate
        trainer.optimizer_step(config, parts, [batch], progress)
    with waiting_raises():
        for batch in batches[3:]:
            trainer.optimizer_step(config, parts, [batch], progress)


def test_a_run_on_a_gpu_can_be_used_on_a_cpu(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"""
data: {{train: "{FACES}", size: 32}}
backbone: {{name: iresnet, depth: 18, width: 8, embedding: 32}}
head: {{name: cosface, scale: 16}}
optim: {{name: muon, lr: 0.05, batch_size: 16, epochs: 2, ema: 0.5, clip_norm: null}}
scheduler: {{name: polynomial, power: 1}}
evaluate: {{sets: [{{name: drawn, faces: "{FACES}", count: 200}}]}}
run: {{output: {tmp_path}/run, device: cuda, precision: fp16, channels_last: true, log_steps: 1}}
""")
    assert train.main(["--config", str(config)]) == 0
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    cpu, gpu = (
        recognition.load(tmp_path / "run", device=device).embed(images).cpu()
        for device in ("cpu", "cuda")
    )
    assert torch.cosine_similarity(cpu, gpu).min() > 0.999
