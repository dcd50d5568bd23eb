"""`optim.name: muon`: the iteration, the steps, and which weights they are for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from recognition.backbones import iresnet, mobilefacenet, vit
from recognition.config import OptimConfig
from recognition.freeze import Frozen
from recognition.muon import (
    ITERATIONS,
    iterated,
    iterated_by_squares,
    muon_weights,
    orthogonalized,
    step_need,
)
from recognition.optimizer import build_optimizer
from recognition.parse import load_config

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"


def _optim(*overrides: str) -> OptimConfig:
    plain = ("optim.nesterov=false", "optim.no_decay_1d=false", "optim.name=muon")
    return load_config(QUICKSTART, [*plain, *overrides]).optim


def _by_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """The published iteration, applied to singular values in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(ITERATIONS):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    step: torch.Tensor = (left * values) @ right
    return step


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (1, 7)])
def test_the_iteration_changes_singular_values_only(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    expected = torch.stack([_by_singular_values(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalized(matrices).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(orthogonalized(torch.zeros(1, *shape)), torch.zeros(1, *shape))


@pytest.mark.parametrize("iterate", [iterated, iterated_by_squares])
def test_both_forms_keep_small_singular_values(
    iterate: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    left, right = (
        torch.linalg.qr(torch.randn(size, 7, generator=torch.Generator().manual_seed(size)))[0]
        for size in (7, 20)
    )
    wide = (left * torch.logspace(0, -4, 7)) @ right.mT
    wide = wide / wide.norm()
    found = left.double().mT @ iterate(wide[None])[0].double()
    expected = left.double().mT @ _by_singular_values(wide)
    torch.testing.assert_close(found.norm(dim=1), expected.norm(dim=1), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-6)


def test_steps_are_those_of_the_definition() -> None:
    muon = ("optim.muon_lr=0.3", "optim.muon_weight_decay=0.1")
    optim = _optim("optim.lr=0.1", "optim.weight_decay=0.01", *muon)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 80, 3), nn.Linear(80, 6))
    optimizer = build_optimizer(optim, net, Frozen(), nn.Linear(2, 2), fused=False)
    expected = {name: weight.detach().double() for name, weight in net.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    for _ in range(3):
        for name, weight in net.named_parameters():
            gradient = torch.randn_like(weight)
            weight.grad = gradient.clone()
            velocity[name] = 0.9 * velocity[name] + gradient.double()
            if name in ("1.weight", "2.weight"):
                flat = (gradient.double() + 0.9 * velocity[name]).flatten(1)
                scale = max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5
                step = scale * _by_singular_values(flat).view(weight.shape)
                expected[name] = expected[name] * (1 - 0.3 * 0.1) - 0.3 * step
            else:
                velocity[name] += 0.01 * expected[name]
                expected[name] = expected[name] - 0.1 * velocity[name]
        optimizer.step()
    for name, weight in net.named_parameters():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_a_fused_step_that_is_skipped_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    optimizer = build_optimizer(_optim(), net, Frozen(), nn.Linear(2, 2), fused=True)
    kept = []
    for value, skipped in ((1.0, 0.0), (float("nan"), 1.0)):
        for weight in net.parameters():
            weight.grad = torch.full_like(weight, value)
        vars(optimizer)["found_inf"] = torch.tensor(skipped)
        optimizer.step()
        weight = net[1].get_parameter("weight")
        kept.append(torch.cat([weight.detach(), optimizer.state[weight]["momentum_buffer"]]))
    assert torch.equal(*kept)


def test_a_first_step_that_is_skipped_leaves_no_trace_without_momentum() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    optim = _optim("optim.momentum=0")
    optimizer = build_optimizer(optim, net, Frozen(), nn.Linear(2, 2), fused=True)
    for value, skipped in ((float("inf"), 1.0), (1.0, 0.0)):
        for weight in net.parameters():
            weight.grad = torch.full_like(weight, value)
        vars(optimizer)["found_inf"] = torch.tensor(skipped)
        optimizer.step()
    assert all(weight.isfinite().all() for weight in net.parameters())


def test_which_weights_muon_steps() -> None:
    net = iresnet.build(32, depth=18, width=4, embedding=8)
    found = muon_weights(net)
    assert len(found) == 21  # 16 in the blocks, 4 in their shortcuts, and the embedding layer
    assert "conv1.weight" not in found
    assert all(net.get_parameter(name).ndim > 1 for name in found)
    mobile = mobilefacenet.build(32, width=8, embedding=8)
    assert all(mobile.get_parameter(name).shape[1] > 1 for name in muon_weights(mobile))
    layers = {f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    transformer = muon_weights(vit.build(32, width=32, depth=1, embedding=8))
    assert {f"{name}.weight" for name in layers} < transformer
    assert "patch_embed.proj.weight" not in transformer
    with pytest.raises(ValueError, match="no convolution or linear layer behind the first one"):
        muon_weights(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)))


def test_factors_and_frozen_weights(tmp_path: Path) -> None:
    net = iresnet.build(32, depth=18, width=4, embedding=8)
    optim = replace(_optim("optim.muon_lr=0.03"), lr_factors={"layer1.*": 2.0})
    frozen = Frozen(frozenset({"layer2.0.conv1.weight"}))
    optimizer = build_optimizer(optim, net, frozen, nn.Linear(2, 2), fused=False)
    rates = {weight: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates[net.get_parameter("layer1.0.conv1.weight")] == pytest.approx(0.06)
    assert rates[net.get_parameter("layer3.0.conv1.weight")] == pytest.approx(0.03)
    assert rates[net.get_parameter("layer1.0.bn1.weight")] == pytest.approx(2 * optim.lr)
    assert net.get_parameter("layer2.0.conv1.weight") not in rates


def test_the_planned_products_are_those_of_a_step() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 80, 3), nn.Linear(80, 6))
    optimizer = build_optimizer(_optim(), net, Frozen(), nn.Linear(2, 2), fused=False)
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    with FlopCounterMode(display=False) as counted:
        optimizer.step()
    need = step_need(net, on_gpu=False)
    assert counted.get_total_flops() == 2 * need.multiply_adds
    assert need.bytes == 4 * (4 * 9 * 80 + 80 * 6) + 20 * 4 * 9 * 80
    with FlopCounterMode(display=False) as counted:
        iterated(torch.ones(1, 4 * 9, 80))
        iterated(torch.ones(1, 6, 80))
    assert counted.get_total_flops() == 2 * step_need(net, on_gpu=True).multiply_adds
