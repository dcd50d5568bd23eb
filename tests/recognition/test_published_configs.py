"""Every published row has a config with the recipe of its source, which builds on meta."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch

import train
from eval.report.published import published_rows
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.models.model import build_backbone
from recognition.parse import build_part, load_config
from tools import plan

ROOT = Path(__file__).parents[2]
ROWS = published_rows()

# The sets' identities and images, as arcface_torch's configs and FastFace's (WebFace8M), CVLface's
# (CASIA) state them.
SETS = {
    "ms1mv3": (93_431, 5_179_510),
    "webface4m": (205_990, 4_235_242),
    "webface8m": (411_980, 8_465_386),
    "webface12m": (617_970, 12_720_066),
    "webface42m": (2_059_906, 42_474_557),
    "casia": (10_572, 490_623),
    "glint360k": (360_232, 17_091_657),
}
# name: backbone, head's margin, epochs, images per step, lr, weight decay, sample rate,
# schedule. FastFace's configs/*.py; arcface_torch's configs/ms1mv3_*.py, wf*.py; AdaFace's
# scripts/run_ir*_ms1mv2.sh.
RECIPES = {
    "ms1mv3_r100_fastface": ("iresnet 100", 0.5, 5, 128, 0.02, 5e-4, 1, "fastface"),
    "webface4m_r100_fastface": ("iresnet 100", 0.4, 5, 128, 0.02, 5e-4, 1, "fastface"),
    "webface8m_r100_fastface": ("iresnet 100", 0.4, 5, 128, 0.02, 5e-4, 1, "fastface"),
    "webface12m_r50_fastface": ("iresnet 50", 0.4, 5, 128, 0.02, 5e-4, 1, "fastface"),
    "webface12m_r100_fastface": ("iresnet 100", 0.4, 5, 128, 0.02, 5e-4, 1, "fastface"),
    "ms1mv3_r100_moving_haar": ("iresnet 100", 0.5, 5, 128, 0.02, 5e-4, 1, "moving_haar"),
    "webface4m_r100_moving_haar": ("iresnet 100", 0.4, 5, 128, 0.02, 5e-4, 1, "moving_haar"),
    "ms1mv3_r100_20epochs": ("iresnet 100", 0.5, 20, 128, 0.02, 5e-4, 1, "polynomial"),
    "webface12m_r100_20epochs": ("iresnet 100", 0.4, 20, 128, 0.02, 5e-4, 1, "polynomial"),
    "ms1mv3_mbf_arcface": ("mobilefacenet", 0.5, 40, 1024, 0.1, 1e-4, 1, "polynomial"),
    "ms1mv3_r50_arcface": ("iresnet 50", 0.5, 20, 1024, 0.1, 5e-4, 1, "polynomial"),
    "ms1mv3_r100_arcface": ("iresnet 100", 0.5, 20, 1024, 0.1, 5e-4, 1, "polynomial"),
    "webface4m_r100_arcface": ("iresnet 100", 0.4, 20, 1024, 0.1, 5e-4, 1, "polynomial"),
    "webface12m_r100_arcface": ("iresnet 100", 0.4, 20, 1024, 0.1, 5e-4, 1, "polynomial"),
    "webface12m_r100_pfc02": ("iresnet 100", 0.4, 20, 1024, 0.1, 5e-4, 0.2, "polynomial"),
    "webface42m_r100_pfc02": ("iresnet 100", 0.4, 20, 1024, 0.1, 5e-4, 0.2, "polynomial"),
    "webface42m_vitb_pfc03": ("vit base", 0.4, 40, 24_576, 0.001, 0.1, 0.3, "polynomial"),
    "webface12m_ir101_adaface": ("ir 101", 0.4, 26, 512, 0.1, 5e-4, 1, "multi_step"),
    "webface4m_ir50_adaface": ("ir 50", 0.4, 26, 512, 0.1, 5e-4, 1, "multi_step"),
    "casia_ir18_adaface": ("ir 18", 0.4, 26, 512, 0.1, 5e-4, 1, "multi_step"),
}


@cache
def config_of(name: str) -> Config:
    return load_config(ROOT / "configs" / f"{name}.yaml")


def header_of(name: str) -> str:
    """The comment at the head of a config, unwrapped."""
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    comment = [
        line[1:].strip()
        for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]
    ]
    return " ".join(comment)


def ranks_of(name: str) -> int:
    """Processes that the header's first command starts."""
    start = header_of(name).partition("Start: ")[2]
    torchrun = re.match(r"torchrun --nproc_per_node=(\d+)", start)
    return int(torchrun[1]) if torchrun else 1


def set_of(name: str) -> str:
    return next(part for part in name.split("_") if part in SETS)


def test_every_row_has_a_config_that_names_it() -> None:
    assert set(RECIPES) | {name for name in ROWS if name.startswith("f2c")} == set(ROWS)
    for name, row in ROWS.items():
        config = config_of(name)
        assert config.evaluate.published == name
        assert config.run.output == f"runs/{name}"
        assert row["identities"] == SETS[set_of(name)][0]


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_the_published_one(name: str) -> None:
    backbone, margin, epochs, images, lr, decay, rate, schedule = RECIPES[name]
    config = config_of(name)
    options = config.backbone.options
    kind = str(options.get("depth") or options.get("variant") or "")
    assert f"{config.backbone.name} {kind}".strip() == backbone
    assert options["embedding"] == 512
    assert config.scheduler.name == schedule
    head = {"multi_step": "adaface"}.get(schedule, "arcface" if margin == 0.5 else "cosface")
    assert (config.head.name, config.head.options["margin"], config.head.options["scale"]) == (
        head,
        margin,
        64,
    )
    if head == "arcface":
        assert config.head.options["gradient"] == "straight_through"
        assert not config.head.options["guard"]
    optim = config.optim
    assert optim.batch_size * optim.accumulation * ranks_of(name) == images
    assert (optim.epochs, optim.lr, optim.weight_decay) == (epochs, lr, decay)
    clip = {
        "adaface": None,
        "cosface": 5 / 12 if name == "webface42m_vitb_pfc03" else 5,
        "arcface": 5,
    }[head]
    assert optim.clip_norm == (clip and pytest.approx(clip, rel=1e-3))
    assert config.classifier.options.get("sample_rate", 1) == rate
    if schedule == "polynomial":
        assert (
            config.scheduler.options["power"] == 2
        )  # the learning rates in arcface_torch's published logs


@pytest.mark.parametrize("name", ROWS)
def test_it_builds_on_the_meta_device(name: str) -> None:
    config, ranks = config_of(name), Ranks(0, ranks_of(name))
    identities, images = SETS[set_of(name)]
    with torch.device("meta"):
        backbone = build_backbone(config)
        classifier = build_part(
            "recognition.classifiers",
            config.classifier,
            backbone=backbone,
            classes=identities,
            head=build_part("recognition.heads", config.head, seed=0),
            ranks=ranks,
            seed=0,
            optimizer_name=config.optim.name,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
            accumulation=config.optim.accumulation,
            precision=config.run.precision,
            batch_size=config.optim.batch_size,
        )
    assert backbone.embedding == 512
    if config.classifier.name != "class_pool":
        assert classifier.weight.shape == (identities // ranks.world, 512)
    per_epoch = images // (config.optim.batch_size * config.optim.accumulation * ranks.world)
    total = per_epoch * config.optim.epochs
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
    scheduler = build_part(
        "recognition.schedulers",
        config.scheduler,
        optimizer=optimizer,
        total_steps=total,
        steps_per_epoch=per_epoch,
    )
    warmup = config.scheduler.options.get("warmup_steps", 0)
    assert scheduler.get_last_lr()[0] == pytest.approx(config.optim.lr / max(warmup, 1))
    assert warmup == (4 * per_epoch if name == "webface42m_vitb_pfc03" else 0)


def test_headers_state_what_the_planner_says() -> None:
    for name, row in ROWS.items():
        header, path = header_of(name), f"configs/{name}.yaml"
        planned = plan.plan(str(ROOT / path), [], row["identities"], None, ranks_of(name))["bytes"][
            "peak"
        ]
        assert f"Memory: {planned / 1e9:.1f} GB planned" in header, name
        assert ("fits in 24 GB" in header) == (planned <= 24e9), name
        assert f"python -m tools.plan --config {path} --classes {row['identities']} " in header
        assert f"--config {path} data.root=FOLDER" in header
        assert "Not run by this project." in header
        if "hours" in row:
            assert f"Hours: {row['hours']} " in header


@pytest.mark.parametrize("name", ["webface12m_r100_pfc02", "webface12m_ir101_adaface"])
def test_the_command_prints_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / f"configs/{name}.yaml"
    assert train.main(["--config", str(path), "--print-config"]) == 0
    assert f"published: {name}" in capsys.readouterr().out
