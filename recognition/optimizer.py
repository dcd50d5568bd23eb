"""The optimizer of a run: which parameters it trains, and with which learning rate each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from recognition.classifiers._row_optimizers import ADAM_BETAS, ADAM_EPS
from recognition.config import OptimConfig
from recognition.freeze import Frozen
from recognition.muon import GROUP, muon_hook, muon_weights
from recognition.name_patterns import match_names
from recognition.parts import CLASSIFIER_GROUP, TEACHER_GROUP

CENTERS = "centers"
"""What `optim.lr_factors` calls the class centers; its other keys are patterns of names."""


def factors_of(optim: OptimConfig) -> Mapping[str, float]:
    """`optim.lr_factors`, empty for null."""
    return optim.lr_factors or {}


def center_factor(optim: OptimConfig) -> float:
    """The factor of `optim.lr_factors` on the learning rate of the class centers."""
    return factors_of(optim).get(CENTERS, 1.0)


def lr_factors(optim: OptimConfig, backbone: nn.Module) -> dict[str, float]:
    """The factor of `optim.lr_factors` on the learning rate of each parameter of the backbone.

    Where several patterns match a name, their factors are multiplied. Raises ValueError for a
    pattern that matches no name.
    """
    factors = {key: value for key, value in factors_of(optim).items() if key != CENTERS}
    names = [name for name, _ in backbone.named_parameters()]
    found = match_names(factors, names, "optim.lr_factors", also=[CENTERS])
    return {
        name: math.prod(factor for key, factor in factors.items() if name in found[key])
        for name in names
    }


def build_optimizer(
    optim: OptimConfig,
    backbone: nn.Module,
    frozen: Frozen,
    classifier: nn.Module,
    teacher: Sequence[nn.Parameter] = (),
    *,
    fused: bool,
) -> torch.optim.Optimizer:
    """The run's optimizer, without the parameters that are frozen.

    A checkpoint finds a rank's centers by the name of their group. The first group has the learning
    rate of `optim.lr`, and may be empty; every other group has a multiple of it. teacher: what is
    trained for a teacher's sake. fused: one kernel makes the whole step of many weights, instead of
    one per operation.
    """
    groups = _groups(optim, backbone, frozen)
    if centers := [p for p in classifier.parameters() if p.requires_grad]:
        lr = optim.lr * center_factor(optim)
        groups.append({"name": CLASSIFIER_GROUP, "params": centers, "lr": lr})
    if teacher:
        groups.append({"name": TEACHER_GROUP, "params": list(teacher)})

    if optim.name == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=optim.lr,
            betas=ADAM_BETAS,
            eps=ADAM_EPS,
            weight_decay=optim.weight_decay,
            fused=fused,
        )
    sgd = torch.optim.SGD(
        groups,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
        fused=fused,
    )
    if optim.name == "muon":
        sgd.register_step_pre_hook(muon_hook(optim.momentum))
    if fused and optim.momentum:
        # Torch would make it with its first step, and not fill it if that step is skipped.
        for group in sgd.param_groups:
            for weight in group["params"]:
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


def _groups(optim: OptimConfig, backbone: nn.Module, frozen: Frozen) -> list[dict[str, Any]]:
    """The backbone's groups: one per kind of step, learning rate and weight decay."""
    factors = lr_factors(optim, backbone)
    by_muon = muon_weights(backbone) if optim.name == "muon" else frozenset()
    # Muon's hook has the momentum, and SGD's own part of the step has none.
    muon = {
        "lr": optim.muon_lr,
        "weight_decay": optim.muon_weight_decay,
        "momentum": 0.0,
        "nesterov": False,
    }
    kinds: dict[str, dict[str, Any]] = {"backbone": {}} | ({GROUP: muon} if by_muon else {})
    groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
    for kind, options in kinds.items():
        for factor in dict.fromkeys([1.0, *factors.values()]):
            for decays in (True, False) if optim.no_decay_1d else (True,):
                name = kind if decays else f"{kind}, no decay"
                group: dict[str, Any] = {"name": name, "params": [], **options}
                if factor != 1.0:
                    lr = options.get("lr", optim.lr) * factor
                    group |= {"name": f"{name}, lr × {factor:g}", "lr": lr}
                if not decays:
                    group["weight_decay"] = 0.0
                groups[kind, factor, decays] = group
    for name, weight in backbone.named_parameters():
        if name not in frozen.parameters:
            kind = GROUP if name in by_muon else "backbone"
            decays = weight.ndim > 1 or not optim.no_decay_1d
            groups[kind, factors[name], decays]["params"].append(weight)
    return list(groups.values())
