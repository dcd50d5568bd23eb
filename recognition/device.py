"""The device of a run: which one, in which precision, and in which memory layout models and images
lie there."""

from __future__ import annotations

import torch
from torch import nn

from recognition.config import Config, ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(config: Config, source: str) -> torch.device:
    """The device of `run.device`; auto takes cuda, then mps, then cpu. Raises ConfigError for one
    that is not here."""
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    asked: str = config.run.device
    name = next(kind for kind, found in here.items() if found) if asked == "auto" else asked
    if not here[name]:
        have = ", ".join(kind for kind, found in here.items() if found)
        raise ConfigError(
            f"{source}: run.device: found {name!r}, but this machine has only {have}; use auto"
        )
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a run's precision (disabled for fp32)."""
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


def place_backbone(backbone: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The backbone where and how a run holds it: a model loaded later must take the same
    kernels."""
    backbone = backbone.to(device)
    return backbone.to(memory_format=torch.channels_last) if channels_last else backbone
