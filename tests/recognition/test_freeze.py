"""Patterns of names, frozen parameters, and modes that an evaluation gives back."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from recognition.backbones.iresnet import build
from recognition.freeze import Frozen, evaluating, freeze
from recognition.name_patterns import match_names

NAMES = ["stem.conv.weight", "stem.norm.weight", "stem.norm.bias", "fc.weight", "fc.bias"]


def test_a_pattern_matches_whole_names_across_their_dots() -> None:
    assert match_names(["stem.*", "*.bias", "fc.weight"], NAMES, "key") == {
        "stem.*": NAMES[:3],
        "*.bias": ["stem.norm.bias", "fc.bias"],
        "fc.weight": ["fc.weight"],
    }


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("stm.*", "did you mean stem.*"),
        ("fc.wait", "did you mean fc.weight"),
        ("weight", "did you mean fc.weight"),
        ("centre", "did you mean centers"),
        ("xyz", "there are: centers, stem*, fc*"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(pattern: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^key: '{pattern}' matches no parameter; ") as caught:
        match_names(["fc.*", pattern], NAMES, "key", also=["centers"])
    assert told in str(caught.value)


class Net(nn.Module):
    """A norm with parameters, one without, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 2)
        self.plain = nn.BatchNorm1d(2, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.plain(self.out(self.drop(self.stem(x))))
        return out


@pytest.mark.parametrize(
    ("patterns", "parameters", "norms"),
    [
        (["stem.*"], {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"}, {"stem.1"}),
        (["*.bias"], {"stem.0.bias", "stem.1.bias", "out.bias"}, set()),
        (["stem.1.weight", "stem.1.bias"], {"stem.1.weight", "stem.1.bias"}, {"stem.1"}),
        (["plain.*"], set(), {"plain"}),
        ([], set(), set()),
    ],
)
def test_what_a_pattern_freezes(patterns: list[str], parameters: set[str], norms: set[str]) -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    frozen = freeze(net, patterns)
    assert frozen == Frozen(frozenset(parameters), frozenset(norms))
    still = {name for name, weight in net.named_parameters() if not weight.requires_grad}
    assert still == parameters

    optimizer = torch.optim.SGD([w for w in net.parameters() if w.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        with evaluating(net):
            assert not any(module.training for module in net.modules())
            net(torch.randn(8, 3))
    assert net.drop.training
    changed = {name for name, value in net.state_dict().items() if (value != before[name]).any()}
    kept = {f"{norm}.{name}" for norm in norms for name in ("running_mean", "running_var")}
    assert not changed & (parameters | kept)
    moved = {"stem.1.running_mean", "plain.running_var", "out.weight"} - parameters - kept
    assert moved <= changed


def test_a_frozen_norm_normalizes_by_its_statistics() -> None:
    net = Net()
    freeze(net, ["stem.*"])
    x = torch.randn(8, 3) * 5 + 2
    assert torch.equal(net.stem(x)[:1], net.stem(x[:1]))  # it does not look at the batch


def test_a_weight_that_is_no_parameter_of_the_run_does_not_freeze_its_norm() -> None:
    """iResNet's last batch norm has a constant weight, and still follows the embeddings."""
    net = build(size=32, depth=18, width=4, embedding=8)
    assert freeze(net, ["layer1.*"]).norms == {
        name
        for name, module in net.named_modules()
        if name.startswith("layer1.") and isinstance(module, nn.BatchNorm2d)
    }
    assert net.features.training


def test_a_backbone_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("init.freeze: found ['*']")):
        freeze(Net(), ["*"])


def test_the_report_counts() -> None:
    net = Net()
    assert freeze(net, ["stem.*"]).report(net) == (
        "4 of 6 parameters (24 of 34 numbers) and 1 of 2 batch norms stay as they are"
    )
