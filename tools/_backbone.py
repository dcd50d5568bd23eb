"""What a backbone's training step needs, found on tensors without storage."""

import json
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from recognition.backbones.vit import VisionTransformer
from recognition.config import Config, Part
from recognition.parse import build_part

BACKBONES = "recognition.backbones"


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

    with FakeTensorMode(allow_non_fake_inputs=True):
        net = build_part(BACKBONES, Part(name, json.loads(options)), size=size)
        inputs = torch.zeros(images, 3, size, size)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        counter = FlopCounterMode(display=False)
        with hooks, counter, autocast(torch.device("cpu"), precision):
            outputs = net(inputs)
    for parameter in net.parameters():
        saved.pop(parameter.untyped_storage()._cdata, None)
    return Traced(
        parameters=tuple(p.untyped_storage().nbytes() for p in net.parameters()),
        activations=tuple(s.nbytes() for at, s in saved.items() if at not in copies),
        weight_copies=sum(s.nbytes() for at, s in saved.items() if at in copies),
        multiply_adds=multiply_adds(net, counter, images),
        embedding=outputs.shape[1],
    )


def _is_weight(tensor: torch.Tensor) -> bool:
    """Whether a saved tensor was made from one parameter alone, as autocast's copies are."""
    node = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return hasattr(node, "variable")


def multiply_adds(net: nn.Module, counter: FlopCounterMode, images: int = 1) -> float:
    """Multiply-adds of the counted forward pass of `images` images.

    Attention is added by a formula, because some versions of torch do not count fused attention.
    """
    counted = counter.get_flop_counts()["Global"].items()
    dense = sum(count for kind, count in counted if "attention" not in str(kind)) / 2
    if not isinstance(net, VisionTransformer):
        return dense
    _, tokens, width = net.pos_embed.shape
    if net.training:  # a share of the patches skips the blocks
        tokens = int(tokens * (1 - net.mask))
    return dense + 2 * tokens**2 * width * len(net.blocks) * images
