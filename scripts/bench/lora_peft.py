"""LoRA as init.lora and as the library peft do it: which layers they reach, and their outputs.

    pip install peft && python -m scripts.bench.lora_peft

peft puts a module in the place of each linear layer. A network that reads the layer's weight, and
does not call the layer, passes it by. The command counts the modules that a forward pass calls,
gives both ways the same A and B, and compares the outputs on random images.
"""

from typing import Any

import torch
from torch import nn

from recognition.config import LoraConfig
from recognition.freeze import Frozen
from recognition.lora import add_lora
from scripts._tables import show_table
from tools._cli import command

MODELS = (
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "eva02_tiny_patch14_224",
    "beitv2_base_patch16_224",
    "swinv2_tiny_window8_256",
)
RANK = 4


def compare(model: str) -> dict[str, Any]:
    """One row: a network of timm with changes of rank 4 in the layers `qkv`."""
    import peft
    import timm

    torch.manual_seed(0)
    theirs: nn.Module = timm.create_model(model, num_classes=0).eval()
    ours: nn.Module = timm.create_model(model, num_classes=0).eval()
    ours.load_state_dict(theirs.state_dict())
    plain: Any = theirs
    side = plain.pretrained_cfg["input_size"][1]
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        before = ours(images)
    add_lora(ours, LoraConfig(rank=RANK, targets=("*.qkv.weight",)), Frozen())
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"])
    peft.inject_adapter_in_model(config, theirs)

    called: set[str] = set()
    layers = [(name, one) for name, one in theirs.named_modules() if name.endswith(".qkv")]
    for name, layer in layers:
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
        change: Any = ours.get_submodule(f"{name}.parametrizations.weight.0")
        adapter: Any = layer
        with torch.no_grad():
            change.b.normal_(std=0.1)
            adapter.lora_A.default.weight.copy_(change.a)
            adapter.lora_B.default.weight.copy_(change.b)
    with torch.no_grad():
        out, other = ours(images), theirs(images)
    return {
        "model": model,
        "layers": len(layers),
        "peft's called": len(called),
        "our change of the output": f"{_apart(out, before):.1e}",
        "peft's": f"{_apart(other, before):.1e}",
        "between both": f"{_apart(out, other):.1e}",
    }


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The distance of two outputs, as a share of the length of the second."""
    return float((one - other).norm() / other.norm())


def run(*, models: tuple[str, ...] = MODELS) -> Any:
    """Compare on several networks.

    models: names in timm.
    """
    return {"rows": show_table(compare(model) for model in models)}


main = command(run)
