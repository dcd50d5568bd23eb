"""LoRA (arXiv 2106.09685): linear layers learn a change of low rank, and keep their own weights.

A layer computes with W + (alpha / rank) B A. W stays as it is. B and A are trained; B starts at 0.
torch's parametrizations do that wherever a network reads the weight of a layer. Behind `weight` in
the names of a state dict stands `parametrizations.weight.original` for W, and
`parametrizations.weight.0.a`, `.b` and `.factor`. A model that is loaded has the sums alone.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from recognition.config import LoraConfig
from recognition.freeze import Frozen
from recognition.name_patterns import match_names

_INSIDE = ".parametrizations.weight."
_ORIGINAL = f"{_INSIDE}original"


class _LowRank(nn.Module):
    """W (out,in) -> W + factor B A, with B (out,rank) and A (rank,in)."""

    factor: torch.Tensor

    def __init__(self, weight: torch.Tensor, rank: int, factor: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        a = torch.empty(rank, inputs)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # as the paper's authors do
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        self.register_buffer("factor", torch.tensor(factor, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return _changed(weight, self.a, self.b, self.factor)


def _changed(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor:
    # In full precision, so that a merged model computes the same bits.
    with torch.autocast(weight.device.type, enabled=False):
        return weight + factor * (b @ a)


def add_lora(backbone: nn.Module, lora: LoraConfig, frozen: Frozen) -> tuple[Frozen, str]:
    """Give the linear layers that `lora.targets` names a change of low rank.

    frozen: what `freeze` has frozen before. Returns it with the weights of these layers, under the
    names that the backbone has now, and a line about what is trained. Raises ValueError for a name
    that is not the weight of a linear layer, and for a rank that a layer does not have.
    """
    layers = {
        f"{name}.weight": module
        for name, module in backbone.named_modules()
        if type(module) is nn.Linear
    }
    if not layers:
        raise ValueError("init.lora: the backbone has no linear layers; use init.freeze alone")
    found = match_names(lora.targets, list(layers), "init.lora.targets")
    targets = list(dict.fromkeys(name for some in found.values() for name in some))
    if not targets:
        raise ValueError(
            "init.lora.targets: found none; name weights of linear layers, such as "
            f"{next(iter(layers))}, in which * stands for any text"
        )
    factor = 1.0 if lora.alpha is None else lora.alpha / lora.rank
    renamed = {}
    for name in targets:
        layer = layers[name]
        if lora.rank > min(layer.weight.shape):
            raise ValueError(
                f"init.lora.rank: found {lora.rank}, expected at most {min(layer.weight.shape)}, "
                f"the smaller side of {name}"
            )
        layer.weight.requires_grad_(False)
        change = _LowRank(layer.weight, lora.rank, factor)
        parametrize.register_parametrization(layer, "weight", change)
        renamed[name] = f"{name.removesuffix('.weight')}{_ORIGINAL}"
    kept = {renamed.get(name, name) for name in frozen.parameters} | set(renamed.values())
    sizes = {name: weight.numel() for name, weight in backbone.named_parameters()}
    added = sum(size for name, size in sizes.items() if f"{_INSIDE}0." in name)
    trained = sum(size for name, size in sizes.items() if name not in kept)
    line = (
        f"init.lora: {len(targets)} linear layers get changes of rank {lora.rank} ({added:,} "
        f"numbers); {trained:,} of {sum(sizes.values()):,} numbers are trained"
    )
    return Frozen(frozenset(kept), frozen.norms), line


def has_lora(names: Iterable[str]) -> bool:
    """Whether these are the names of a state dict with LoRA."""
    return any(name.endswith(_ORIGINAL) for name in names)


def merged(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The state dict of the network without LoRA, from one with it; any other as it is.

    It needs no more memory than the weights. ValueError for changes that do not fit their weights.
    """
    plain = dict(state)
    for name in state:
        if not name.endswith(_ORIGINAL):
            continue
        layer = name.removesuffix(_ORIGINAL)
        weight = plain.pop(name)
        a, b, factor = (plain.pop(f"{layer}{_INSIDE}0.{end}", None) for end in ("a", "b", "factor"))
        if a is None or b is None or factor is None or not _fit(weight, a, b, factor):
            raise ValueError(f"the LoRA of {layer} is incomplete, or does not fit its weight")
        plain[f"{layer}.weight"] = _changed(weight.float(), a.float(), b.float(), factor.float())
    return plain


def _fit(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, factor: torch.Tensor) -> bool:
    if (weight.ndim, a.ndim, b.ndim, factor.ndim) != (2, 2, 2, 0):
        return False
    return (*b.shape, a.shape[1]) == (len(weight), len(a), weight.shape[1])
