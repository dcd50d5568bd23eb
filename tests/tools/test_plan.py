"""The planner against what real runs need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition.backbones import embedding_of
from recognition.config import ConfigError, Part
from recognition.distributed import Ranks
from recognition.models.facts import ModelFacts
from recognition.models.model import build_backbone
from recognition.models.model_folder import write_model
from recognition.parse import build_part, load_config
from scripts.bench import gpu
from scripts.bench._gpu_cell import FULL, Cell, config_of, planned
from tools import _cuda, _time, plan
from tools._cards import CARDS, find_card
from tools._need import estimate, facts_of, sizes_of, traced_backbone

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
    need = traced_backbone(loaded)
    net = build_backbone(loaded)
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in net.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(torch.zeros(4, 3, 48, 48))
    assert outputs.shape[1] == need.embedding
    assert need.parameters == tuple(4 * parameter.numel() for parameter in net.parameters())
    assert sum(need.activations) == pytest.approx(sum(kept.values()), rel=0.02)


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


def test_a_setting_that_the_backbone_refuses_is_no_proposal(config: Path) -> None:
    pytest.importorskip("timm")
    backbone = {"name": "timm", "model": "pit_ti_224", "options": {"depth": [1, 1, 1]}}
    given = [f"backbone={backbone}", "optim.batch_size=258"]
    loaded = load_config(config, given)
    tried = [tried for tried, _ in plan.alternatives(str(config), given, loaded)]
    assert ["backbone.checkpoint=true"] in tried
    need = plan.plan(str(config), given, 100, None, 1)["bytes"]["peak"]
    fitting = plan.plan(str(config), given, 100, need - 1, 1)["fitting"]
    assert ["optim.batch_size=129", "optim.accumulation=2"] in [fit["overrides"] for fit in fitting]
    assert ["backbone.checkpoint=true"] not in [fit["overrides"] for fit in fitting]


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
        need = estimate(loaded, 10**9, 1, 0)["logits (one chunk)"]
        assert need == rows * (4 * 64 + 2 * embedding_of(backbone)) * 4


def test_agents_cost_memory_and_no_time(config: Path) -> None:
    one, three = (
        plan.plan(
            str(config), [f"classifier={{name: semi_siamese, agents: {agents}}}"], 1000, None, 1
        )["bytes"]
        for agents in (1, 3)
    )
    assert three["gallery networks"] == 3 * one["gallery networks"] == 3 * one["backbone weights"]
    assert three["gallery queue"] == one["gallery queue"] > 250 * 4 * 128
    assert three["activations"] == one["activations"]
    half = ["classifier={name: semi_siamese, swap: false}"]
    assert (
        plan.plan(str(config), half, 1000, None, 1)["bytes"]["activations"]
        < 0.6 * one["activations"]
    )


def test_a_class_pool_does_not_grow_with_the_ranks_and_without_swap_sees_half(config: Path) -> None:
    pooled = ["classifier={name: class_pool, size: 0.1}", "optim.batch_size=60"]
    one, eight = (plan.plan(str(config), pooled, 100_000, None, ranks)["bytes"] for ranks in (1, 8))
    assert one == pytest.approx(eight, rel=1e-3)
    half = plan.plan(str(config), [*pooled, "classifier.swap=false"], 100_000, None, 1)["bytes"]
    assert half["activations"] < 0.6 * one["activations"]


MIB = 1 << 20


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([1], 2 * MIB),
        ([MIB, MIB], 2 * MIB),
        ([MIB, MIB, 1], 4 * MIB),  # each is rounded up to 512 bytes
        ([2 * MIB] * 10, 20 * MIB),
        ([2 * MIB] * 11, 40 * MIB),
        ([10 * MIB + 1, 10 * MIB - 1], 40 * MIB),
        ([10 * MIB + 1, 3 * MIB, 5], (20 + 2) * MIB),
    ],
)
def test_the_allocator_takes_whole_pages(sizes: list[int], taken: int) -> None:
    assert _cuda.reserved(sizes) == taken


def test_a_gpu_needs_what_a_cpu_does_not(config: Path) -> None:
    def need(*overrides: str, ranks: int = 1) -> dict[str, int]:
        found: dict[str, int] = plan.plan(str(config), overrides, 1000, None, ranks)["bytes"]
        return found

    cuda = "run.device=cuda"
    terms = set(need(cuda)) - set(need())
    assert terms == {"cuBLAS workspaces", "allocator rounding", "cuDNN workspace"}
    assert set(need(cuda, ranks=2)) - set(need(cuda)) == {"NCCL buffers"}
    reduced = need(cuda, "run.precision=bf16")
    assert set(reduced) - set(need(cuda)) == {"weights in low precision", "chunk in low precision"}
    compiled = need(cuda, "run.precision=bf16", "run.compile=true")
    assert compiled["activations"] < reduced["activations"]
    nchw, nhwc = (
        need(cuda, f"run.channels_last={last}")["cuDNN workspace"] for last in ("false", "true")
    )
    assert nchw > nhwc


def test_autocast_keeps_copies_of_the_weights(config: Path) -> None:
    loaded = load_config(config, ["backbone.width=8", "run.precision=bf16"])
    layers = [
        module
        for module in build_backbone(loaded).modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.PReLU)  # the embedding layer stays float32
    ]
    copied = sum(2 * layer.weight.numel() for layer in layers)
    assert traced_backbone(loaded).weight_copies == copied


def test_time_counts_the_products_of_a_literal_step(config: Path) -> None:
    loaded = load_config(config, ["backbone.width=8", "run.precision=fp16", "run.device=cuda"])
    net = build_backbone(loaded)
    counted = [0]

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        counted[0] += out[0].numel() * weight[0].numel()  # one product per output and weight

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    net.eval()(torch.zeros(1, 3, 48, 48))
    facts, classes = facts_of("full"), 1000
    load = _time.load(loaded, facts, sizes_of(loaded, classes, 1))
    assert load.backbone == 2 * 3 * 64 * counted[0]
    assert load.classifier == 2 * 4 * 64 * classes * 256
    again = load_config(config, ["backbone.width=8", "backbone.checkpoint=true"])
    assert _time.load(again, facts, sizes_of(again, classes, 1)).backbone == 2 * 4 * 64 * counted[0]
    shared = _time.load(loaded, facts, sizes_of(loaded, classes, 4))
    assert (shared.images, shared.classifier) == (4 * load.images, load.classifier)
    assert load.sent == 0 < shared.sent


def test_a_measured_utilization_gives_the_measured_time(config: Path) -> None:
    loaded = load_config(config, ["run.precision=fp16"])
    load = _time.load(loaded, facts_of("full"), sizes_of(loaded, 1000, 1))
    card = find_card("a100")
    for share in (0.1, 0.6):
        step = _time.seconds(load, card, share)["step"]
        assert _time.measured_utilization(load, card, step) == pytest.approx(share)
    assert _time.measured_utilization(load, card, 1e-9) is None


# Images per second of all GPUs: FastFace (arXiv 2404.11118) on one RTX 4090, and arcface_torch's
# speed benchmark on eight V100s with two million identities. Their classifiers are not ours.
PUBLISHED_SPEEDS = [
    ("ms1mv3_r100_fastface", 93_431, "RTX 4090", 1, [], 798),
    ("webface12m_r100_fastface", 617_970, "RTX 4090", 1, [], 589),
    ("webface42m_r100_pfc02", 2_000_000, "V100", 8, ["classifier.sample_rate=0.1"], 3247),
]


@pytest.mark.parametrize(
    ("name", "classes", "card", "ranks", "overrides", "published"), PUBLISHED_SPEEDS
)
def test_expected_times_are_near_published_ones(
    name: str, classes: int, card: str, ranks: int, overrides: list[str], published: float
) -> None:
    path = str(ROOT / f"configs/{name}.yaml")
    expected = plan.plan_time(
        path,
        [*overrides, "optim.accumulation=1"],
        find_card(card),
        classes=classes,
        images=1_000_000,
        ranks=ranks,
        utilization=None,
    )
    assert 0.7 < expected["images_per_second"] / published < 1.4
    assert expected["hours_per_epoch"] * 3600 * expected["images_per_second"] == pytest.approx(
        1_000_000, rel=0.01
    )


@pytest.mark.parametrize("cell", gpu.DEFAULT[:6], ids=lambda cell: cell.name)
def test_the_plan_is_near_what_an_h100_measured(cell: Cell) -> None:
    measured = json.loads((ROOT / "docs/results/gpu/h100.json").read_text())["cells"][cell.name]
    config = config_of(cell, FULL)
    config = replace(config, run=replace(config.run, device="cuda"))
    assert 1 < planned(config, cell.classes) / measured["reserved GB"] < 1.15
    facts = facts_of(config.classifier.name)
    load = _time.load(config, facts, sizes_of(config, cell.classes, 1))
    rate = load.images / _time.seconds(load, find_card("H100"))["step"]
    assert 0.7 < rate / measured["images/s"] < 1.4


def test_the_command_prints_the_time(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(config), "--time", "--classes=1000"]
    assert plan.main([*words, "--card=rtx4090", "--images=64000", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["limit"] == 24e9
    assert record["time"]["hours"] == pytest.approx(1000 * record["time"]["seconds"]["step"] / 3600)
    assert plan.main([*words, "--card=h100"]) == 0
    assert "--images" in capsys.readouterr().out
    pooled = ["classifier={name: class_pool, size: 0.1}", "optim.batch_size=60"]
    assert plan.main([*words, *pooled, "--card=h100", "--images=60000", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    # An epoch of a class pool shows three times as many images as the set has.
    steps = 3 * 60000 // 60
    assert record["time"]["hours"] == pytest.approx(
        steps * record["time"]["seconds"]["step"] / 3600
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--card=rtx9090"], "RTX 4090"),
        (["--card=t4", "--time", "run.precision=bf16"], "run.precision=fp16"),
    ],
)
def test_a_card_that_cannot_is_refused(
    words: list[str], told: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(["--config", str(config), "--classes=1000", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_no_card_has_two_names_or_a_tensor_core_slower_than_its_cores() -> None:
    assert len({card.name for card in CARDS}) == len({card.device for card in CARDS}) == len(CARDS)
    for card in CARDS:
        assert card.fp16 >= (card.tf32 or card.fp32) >= card.fp32
        assert card.fp16 == (card.bf16 or card.fp16)
        assert find_card(card.name.lower().replace(" ", "-")) is card


def test_a_teacher_counts_where_it_computes(config: Path, tmp_path: Path) -> None:
    """Its weights and its forward pass, or its centers and the linear map alone."""
    facts = ModelFacts(
        architecture=Part("iresnet", {"depth": 18, "width": 64, "embedding": 512}), size=112
    )
    network = build_part("recognition.backbones", facts.architecture, size=112)
    (tmp_path / "teacher").mkdir()
    write_model(tmp_path / "teacher", facts, network.state_dict())
    np.save(tmp_path / "v.npy", np.zeros((160, 512), np.float16))
    weights = sum(p.numel() for p in network.parameters())

    def planned(*overrides: str) -> tuple[dict[str, int], dict[str, float]]:
        chosen = load_config(config, overrides)
        needs = sizes_of(chosen, 1000, 2)
        load = _time.load(chosen, facts_of("full"), needs)
        return estimate(chosen, 1000, 2, 0), _time.seconds(load, find_card("RTX 4090"))

    alone, alone_seconds = planned()
    stored = planned(f"teacher.vectors={tmp_path / 'v.npy'}", "teacher.centers=1")
    batch = planned(f"teacher.model={tmp_path / 'teacher'}", "teacher.augmented=true")
    added = {name: count - alone.get(name, 0) for name, count in stored[0].items()}
    linear, centers = 4 * 256 * 512 * 3, 4 * 500 * 512
    assert added["teacher's linear map"] == linear
    assert added["teacher's centers"] == centers
    assert added["peak"] == linear + centers
    assert batch[0]["teacher's weights"] == 4 * weights
    assert batch[0]["peak"] - alone["peak"] >= 4 * weights + linear

    # An iResNet-18 of width 64 takes 2.6 G multiply-adds per image of 112 pixels.
    assert "teacher's products" not in alone_seconds
    share = batch[1]["teacher's products"] / alone_seconds["backbone's products"]
    own = traced_backbone(load_config(config, [])).multiply_adds / 64
    assert share == pytest.approx(2.62e9 / (3 * own), rel=0.02)
    with pytest.raises(ConfigError, match="teacher: nowhere: not found"):
        planned("teacher.model=nowhere")
