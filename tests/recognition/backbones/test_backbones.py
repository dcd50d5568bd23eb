"""Backbones against the genuine classes: names and shapes, outputs, and published counts."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from data.parts import part_names
from recognition.config import ConfigError
from recognition.parse import load_config
from tests.backbones import backbone_text, installed_backbones

HERE = Path(__file__).parent
QUICKSTART = HERE.parents[2] / "configs" / "quickstart.yaml"
GOLDEN: dict[str, dict[str, Any]] = json.loads((HERE / "genuine.json").read_text())
FILLED = runpy.run_path(str(HERE / "filled.py"))
NAMES = installed_backbones()
SMALL: dict[str, dict[str, Any]] = {
    "iresnet": {"depth": 18, "width": 8, "size": 32, "embedding": 16},
    "ir": {"depth": 18, "se": True, "width": 16, "size": 32, "embedding": 16, "dropout": 0.0},
    "kprpe": {
        "landmarks": "template",
        "width": 32,
        "depth": 3,
        "heads": 2,
        "size": 32,
        "embedding": 16,
        "drop_path": 0.0,
    },
    "mobilefacenet": {"width": 8, "size": 32, "embedding": 16},
    "mobilefacenet_small": {"width": 8, "size": 32, "embedding": 16},
    "timm": {
        "model": "convnext_atto",
        "options": {"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 64]},
        "embedding": 16,
        "size": 32,
    },
    "vit": {"width": 32, "depth": 3, "size": 32, "embedding": 16, "drop_path": 0.0, "mask": 0.0},
}
MULTIPLY_ADDS = {  # forward, 112 x 112, in units of 1e9: insightface's model zoo
    "insightface r18": 2.6,
    "insightface r50": 6.3,
    "insightface r100": 12.1,
    "insightface r200": 23.5,
    "insightface mbf": 0.45,
    "insightface vit tiny": 1.5,
    "insightface vit base": 11.4,
}
PARAMETERS = {
    "insightface r18": 24.03,
    "insightface r50": 43.59,
    "insightface r100": 65.16,
    "insightface mbf": 2.06,
}


def build(module: str, **options: Any) -> nn.Module:
    net: nn.Module = importlib.import_module(f"recognition.backbones.{module}").build(**options)
    return net


def small(name: str) -> dict[str, Any]:
    """Options that make a backbone quick to test: those of SMALL, or its own default ones."""
    return SMALL.get(name, {"size": 32})


def has_option(name: str, option: str) -> bool:
    module = importlib.import_module(f"recognition.backbones.{name}")
    return option in inspect.signature(module.build).parameters


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_tables_name_backbones() -> None:
    """A backbone that is in no table is tested with its default options."""
    named = set(SMALL) | {golden["module"] for golden in GOLDEN.values()}
    assert named <= set(part_names("recognition.backbones"))


@pytest.mark.parametrize("name", GOLDEN)
def test_names_shapes_and_counts_are_the_genuine_ones(name: str) -> None:
    golden = GOLDEN[name]
    with torch.device("meta"):
        net = build(golden["module"], **golden["options"])
    lines = sorted(f"{key} {list(value.shape)}" for key, value in net.state_dict().items())
    assert len(lines) == golden["entries"]
    assert [lines[0].split()[0], lines[-1].split()[0]] == golden["first_last"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == golden["sha256"], lines
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert parameters == golden["parameters"]
    if name in PARAMETERS:
        assert parameters / 1e6 == pytest.approx(PARAMETERS[name], abs=0.006)
    if name in MULTIPLY_ADDS:
        with FakeTensorMode(), FlopCounterMode(display=False) as counter:
            build(golden["module"], **golden["options"]).eval()(torch.empty(1, 3, 112, 112))
        attention = sum(
            2 * 144**2 * block.attn.proj.in_features for block in getattr(net, "blocks", [])
        )
        counted = counter.get_flop_counts()[
            "Global"
        ].items()  # Torch counts fused attention from 2.15 on.
        rest = sum(count for kind, count in counted if "attention" not in str(kind)) / 2
        assert (rest + attention) / 1e9 == pytest.approx(MULTIPLY_ADDS[name], rel=0.03)


@pytest.mark.parametrize("name", [name for name in GOLDEN if "outputs" in GOLDEN[name]])
def test_outputs_are_the_genuine_ones(name: str) -> None:
    golden = GOLDEN[name]
    net = FILLED["fill"](build(golden["module"], **golden["options"]))
    with torch.no_grad():
        outputs = net(FILLED["image"]())
    assert outputs.shape == (2, 512)
    torch.testing.assert_close(
        outputs[:, :6], torch.tensor(golden["outputs"]), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_training(name: str, images: torch.Tensor) -> None:
    net = build(name, **small(name))
    assert net.embedding == SMALL.get(name, {}).get("embedding", net.embedding)
    embeddings = net(images)
    assert embeddings.shape == (6, net.embedding)
    embeddings.square().mean().backward()
    missing = [
        key
        for key, p in net.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert set(missing) <= {f"features.{tail}" for tail in ("bias", "weight")} | {
        "feature.3.bias",
        "feature.1.bias",
    }
    for size in (48, 72):
        with torch.no_grad():
            net = build(name, **{**small(name), "size": size}).eval()
            assert net(torch.randn(2, 3, size, size)).shape == (2, net.embedding)


def statistics(net: nn.Module) -> Iterator[torch.Tensor]:
    return (
        value.double()
        for key, value in net.state_dict().items()
        if "running" in key or "tracked" in key
    )


@pytest.mark.parametrize("name", [name for name in NAMES if has_option(name, "checkpoint")])
def test_gradient_checkpointing_changes_nothing_but_memory(name: str, images: torch.Tensor) -> None:
    plain, light = (
        build(name, **small(name), checkpoint=checkpoint) for checkpoint in (False, True)
    )
    light.load_state_dict(plain.state_dict())
    kept = []
    for net in (plain, light):
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = net(images)
        kept.append(count)
        (outputs * torch.linspace(-1, 1, outputs.shape[1])).square().sum().backward()
    assert kept[1] < 0.6 * kept[0]
    for one, two in zip(plain.parameters(), light.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, two.grad)
    for before, after in zip(statistics(plain), statistics(light), strict=True):
        torch.testing.assert_close(before, after)
    assert {norm.momentum for norm in light.modules() if isinstance(norm, nn.BatchNorm2d)} <= {0.1}


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_and_autocast(name: str, images: torch.Tensor) -> None:
    net = build(name, **small(name)).eval()
    with torch.no_grad():
        expected = net(images)
        last = net.to(memory_format=torch.channels_last)
        outputs = last(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(
            outputs, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = last(images)
    assert outputs.dtype == torch.float32
    assert ((outputs - expected).norm() / expected.norm()).item() < 0.05


@pytest.mark.parametrize(
    ("name", "checkpoint"), [*((name, False) for name in NAMES), ("iresnet", True)]
)
def test_compiled(name: str, checkpoint: bool, images: torch.Tensor) -> None:
    """The graph is traced but runs eagerly, because code generation would take minutes."""
    net = build(name, **small(name), **({"checkpoint": True} if checkpoint else {}))
    expected = net(images)
    gradient = torch.autograd.grad(expected.square().sum(), next(net.parameters()))[0]
    torch.compiler.reset()
    outputs = torch.compile(net, backend="aot_eager" if checkpoint else "eager", fullgraph=True)(
        images
    )
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    got = torch.autograd.grad(outputs.square().sum(), next(net.parameters()))[0]
    torch.testing.assert_close(got, gradient, rtol=1e-3, atol=1e-3)


def test_transformer_masks_and_drops_in_training_only() -> None:
    net = build("vit", **{**SMALL["vit"], "mask": 0.3, "drop_path": 0.5, "depth": 2})
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(0)
    one, two = net(images), net(images)
    assert not torch.equal(one, two)
    one.sum().backward()
    assert net.mask_token.grad is not None
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(images), net(images))


def test_reversed_channels() -> None:
    plain, reversed_ = (build("ir", **SMALL["ir"], bgr=bgr).eval() for bgr in (False, True))
    reversed_.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(reversed_(images), plain(images.flip(1)))


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("iresnet", "backbone.depth=19"),
        ("iresnet", "backbone.dropout=1"),
        ("ir", "backbone.depth=100"),
        ("vit", "backbone.variant=giant"),
        ("vit", "backbone.mask=1.0"),
        *((name, "backbone.embedding=0") for name in NAMES if has_option(name, "embedding")),
        *((name, "data.size=8") for name in SMALL),
    ],
)
def test_bad_options_are_named(name: str, override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: .*{value}"):
        load_config(QUICKSTART, [f"backbone={backbone_text(name)}", override])


@pytest.mark.parametrize(("name", "options"), [("vit", {"width": 100}), ("vit", {"size": 8})])
def test_numbers_that_do_not_fit_each_other_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        build(name, **options)


@pytest.mark.parametrize("name", ["iresnet", "ir"])
def test_smaller_images_train_the_same_weights(name: str) -> None:
    net = build(name, **SMALL[name])
    assert net.takes_smaller_images
    net(torch.randn(3, 3, 16, 16)).square().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters() if weight.requires_grad)
