"""The planner against what real runs need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recognition.backbones import embedding_of
from recognition.config import ConfigError
from recognition.distributed import Ranks
from recognition.embedder import build_backbone
from recognition.parse import build_part, load_config
from tools import plan

ROOT = Path(__file__).parents[2]
CONFIG = """
data: {train: "synthetic:identities=40,images=4", size: 48}
backbone: {name: iresnet, depth: 18, width: 32, embedding: 256}
head: {name: cosface}
classifier: {name: full, fused: false}
optim: {lr: 0.1, batch_size: 64, epochs: 1}
scheduler: {name: cosine}
run: {output: runs/never, device: cpu}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("", ""),
        ("fused: false", "fused: true"),
        ("full, fused: false}\noptim: {", "partial, sample_rate: 0.2}\noptim: {accumulation: 4, "),
    ],
    ids=["full", "fused", "partial, accumulated"],
)
def test_peak_is_within_a_quarter_of_the_measured_one(was: str, now: str, config: Path) -> None:
    config.write_text(CONFIG.replace(was, now))
    classes = 300_000
    worker = [
        sys.executable,
        str(Path(__file__).with_name("peak_worker.py")),
        str(config),
        str(classes),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    measured = int(
        subprocess.run(worker, check=True, capture_output=True, text=True, env=environment).stdout
    )
    planner = [sys.executable, "-m", "tools.plan", "--config", str(config), "--json"]
    planner += ["--classes", str(classes)]
    done = subprocess.run(planner, check=True, capture_output=True, text=True, cwd=ROOT)
    planned = json.loads(done.stdout.splitlines()[-1])["bytes"]["peak"]
    assert planned == pytest.approx(measured, rel=0.25)


def test_traced_activations_are_the_real_ones(config: Path) -> None:
    loaded = load_config(config, ["backbone.width=8", "optim.batch_size=4"])
    need = plan.backbone_need(loaded)
    net = build_backbone(loaded)
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in net.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(torch.zeros(4, 3, 48, 48))
    assert outputs.shape[1] == need["embedding"]
    assert need["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert need["activations"] == pytest.approx(sum(kept.values()), rel=0.02)


def test_settings_that_fit(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = plan.plan(str(config), [], 2_059_906, 7_000_000_000, 1)
    assert result["bytes"]["peak"] > 7_000_000_000
    found = [" ".join(fit["overrides"]) for fit in result["fitting"]]
    assert "classifier.fused=true classifier.momentum_dtype=bfloat16" in found
    assert "classifier={name: partial} classifier.sample_rate=0.1" in found
    # a multiple of 6
    assert "classifier={name: class_pool, size: 0.01} optim.batch_size=60" in found
    for fit in result["fitting"]:
        again = plan.plan(str(config), fit["overrides"], 2_059_906, None, 1)["bytes"]["peak"]
        assert again <= 7_000_000_000
        assert again == pytest.approx(fit["peak"], rel=0.01)
    plan.show(result)
    assert "does not fit in 7.00 GB" in capsys.readouterr().out
    shared = plan.plan(str(config), [], 2_059_906, 7_000_000_000, 4)
    assert shared["bytes"]["centers"] < 0.26 * result["bytes"]["centers"]
    assert shared["fitting"] == []


def test_identities_are_read_from_the_data(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    assert plan.plan(str(config), [], None, None, 1)["classes"] == 40
    with pytest.raises(ConfigError, match="--classes"):
        plan.plan(str(config), ["data.train=nowhere.rec"], None, None, 1)


def test_a_wrong_key_ends_with_code_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--config", str(config), "optim.lrr=1"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert "optim.lrr" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("text", "count"), [("24GB", 24e9), ("512M", 512e6), ("1.5 g", 1.5e9), ("8000", 8000)]
)
def test_sizes(text: str, count: float) -> None:
    assert plan.memory(text) == count


def proposed(config: Path, *overrides: str) -> set[str]:
    """What the planner tries for a config: one line per set of overrides."""
    loaded = load_config(config, overrides)
    return {" ".join(tried) for tried, _ in plan.alternatives(str(config), overrides, loaded)}


def test_what_a_config_may_not_say_is_not_proposed(config: Path) -> None:
    fused = "classifier.fused=true"
    halved = "optim.batch_size=32 optim.accumulation=2"
    assert {fused, halved} <= proposed(config)
    assert fused not in proposed(config, "optim.nesterov=true")
    assert halved not in proposed(config, fused)
    assert f"run.precision=bf16 {fused}" in proposed(config, "run.precision=fp16")
    pooled = proposed(config, "classifier={name: class_pool}", "optim.batch_size=132")
    assert "optim.batch_size=66 optim.accumulation=2" in pooled
    assert "optim.batch_size=33 optim.accumulation=4" not in pooled


def test_what_a_run_would_refuse_is_not_proposed(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1 % of 1000 identities are fewer columns than half a batch may bring
    small = plan.plan(str(config), [], 1000, 100_000_000, 1)
    assert not any("0.01" in word for fit in small["fitting"] for word in fit["overrides"])
    pooled = ["classifier={name: class_pool, size: 4}", "optim.batch_size=60"]
    assert plan.main(["--config", str(config), *pooled, "--classes=500"]) == 2
    assert "smallest size that fits is 30" in capsys.readouterr().err


def test_sub_centers_and_wide_embeddings_make_chunks_as_a_run_does(config: Path) -> None:
    for overrides in ([], ["classifier.sub_centers=3"], ["backbone.embedding=16384"]):
        loaded = load_config(config, ["backbone.width=4", *overrides])
        backbone = build_backbone(loaded)
        head = build_part("recognition.heads", loaded.head, seed=0)
        run = {"backbone": backbone, "classes": 5, "head": head, "ranks": Ranks(), "seed": 0}
        optim = {"momentum": 0.9, "weight_decay": 0.0, "precision": "fp32", "batch_size": 64}
        options = build_part("recognition.classifiers", loaded.classifier, **run, **optim).options
        rows = options.chunk * options.sub_centers
        need = plan.estimate(loaded, 10**9, 1, 0)["logits (one chunk)"]
        assert need == rows * (4 * 64 + 2 * embedding_of(backbone)) * 4


def test_a_class_pool_does_not_grow_with_the_ranks_and_without_swap_sees_half(config: Path) -> None:
    pooled = ["classifier={name: class_pool, size: 0.1}", "optim.batch_size=60"]
    one, eight = (plan.plan(str(config), pooled, 100_000, None, ranks)["bytes"] for ranks in (1, 8))
    assert one == pytest.approx(eight, rel=1e-3)
    half = plan.plan(str(config), [*pooled, "classifier.swap=false"], 100_000, None, 1)["bytes"]
    assert half["activations"] < 0.6 * one["activations"]
