"""What a backbone's training step needs, found on tensors without storage."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from recognition.backbones import needs_landmarks
from recognition.config import Config, Part
from recognition.models.recognize import blank

BACKBONES = "recognition.backbones"
FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Traced:
    """A backbone's forward pass in training.

    parameters: bytes of each float32 parameter. activations: bytes of each tensor that the backward
    pass needs, without the weights. weight_copies: bytes of the weights in the precision of
    autocast. multiply_adds: of the whole forward pass. embedding: numbers per embedding.
    """

    parameters: tuple[int, ...]
    activations: tuple[int, ...]
    weight_copies: int
    multiply_adds: float
    embedding: int


def trace(part: Part, images: int, size: int, precision: str) -> Traced:
    """The forward pass of `images` square images of `size` pixels in `run.precision`."""
    return _trace(part.name, json.dumps(dict(part.options)), images, size, precision)


def blank_backbone(config: Config) -> nn.Module:
    """The backbone without storage."""
    return blank(config.backbone, config.data.size)


def share_of_full_size(config: Config) -> float:
    """Multiply-adds of a training image divided by those at `data.size`; 1 without a schedule."""
    smaller = config.data.size_schedule or {}

    def multiply_adds(size: int) -> float:
        return trace(config.backbone, 2, size, config.run.precision).multiply_adds

    full = multiply_adds(config.data.size) if smaller else 1.0
    return 1 - sum(share * (1 - multiply_adds(size) / full) for size, share in smaller.items())


@cache  # plans of one command differ in the classifier more often than in the backbone
def _trace(name: str, options: str, images: int, size: int, precision: str) -> Traced:
    from recognition.device import autocast

    # By address. The storages stay referenced here, so that no other gets the same address.
    saved: dict[int, torch.UntypedStorage] = {}
    copies: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        if _is_weight(tensor):
            copies.add(storage._cdata)
        return tensor

    net = blank(Part(name, json.loads(options)), size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        net.to_empty(device="cpu")
        inputs = [torch.zeros(images, 3, size, size)]
        if needs_landmarks(net):
            inputs.append(torch.zeros(images, 5, 2))
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        counter = count_products()
        with hooks, counter, autocast(torch.device("cpu"), precision):
            outputs = net(*inputs)
    for parameter in net.parameters():
        saved.pop(parameter.untyped_storage()._cdata, None)
    return Traced(
        parameters=tuple(p.untyped_storage().nbytes() for p in net.parameters()),
        activations=tuple(s.nbytes() for at, s in saved.items() if at not in copies),
        weight_copies=sum(s.nbytes() for at, s in saved.items() if at in copies),
        multiply_adds=multiply_adds(counter),
        embedding=outputs.shape[1],
    )


def _is_weight(tensor: torch.Tensor) -> bool:
    """Whether a saved tensor was made from one parameter alone, as autocast's copies are."""
    node = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return hasattr(node, "variable")


def count_products() -> FlopCounterMode:
    """Counts matrix products, convolutions and attention; some versions of torch leave it out."""
    return FlopCounterMode(display=False, custom_mapping={FUSED_ATTENTION: _attention})


def _attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))


def multiply_adds(counter: FlopCounterMode) -> float:
    """Multiply-adds of the counted forward pass."""
    return sum(counter.get_flop_counts()["Global"].values()) / 2
