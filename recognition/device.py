"""The device of a run, its precision, and how models and images lie in its memory."""

import torch
from torch import nn

from recognition.config import Config, ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(config: Config, source: str) -> torch.device:
    """The device of `run.device`, where `auto` prefers cuda to mps to cpu.

    Raises ConfigError where this machine does not have the device.
    """
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    found = [kind for kind, is_here in here.items() if is_here]
    asked = config.run.device
    if asked != "auto" and asked not in found:
        raise ConfigError(
            f"{source}: run.device: found {asked!r}, but this machine has only "
            f"{', '.join(found)}; use auto"
        )
    return torch.device(found[0] if asked == "auto" else asked)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of `run.precision`; it does nothing for fp32."""
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


def place_backbone(backbone: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The backbone on its device in the layout of `run.channels_last`.

    Training and a model that is loaded later run the same kernels, because both come through here.
    """
    return backbone.to(device).to(memory_format=_layout(channels_last))


def lay_out(images: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Images (B,3,H,W) in the layout of `run.channels_last`; they are copied only if need be."""
    return images.contiguous(memory_format=_layout(channels_last))


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
