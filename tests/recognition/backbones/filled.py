"""Weights that depend only on parameter names and shapes, to compare two implementations."""

from __future__ import annotations

import zlib

import torch
from torch import nn


def fill(net: nn.Module) -> nn.Module:
    """Draw every tensor of the state dict from a generator whose seed depends on its name.

    Activations stay in range.
    """
    state = {}
    for name, old in net.state_dict().items():
        draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if not old.is_floating_point():
            state[name] = old
        elif old.ndim > 1:
            state[name] = torch.randn(old.shape, generator=draw) * (2 / old[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            state[name] = torch.rand(old.shape, generator=draw) * 0.2 + 0.5
        else:
            state[name] = torch.randn(old.shape, generator=draw) * 0.1
    net.load_state_dict(state)
    return net.eval()


def image(size: int = 112) -> torch.Tensor:
    """Two smooth images (2,3,size,size) in [-1, 1].

    They differ from each other, from their mirror images, and in every channel.
    """
    rows = torch.linspace(0, 1, size)[:, None]
    columns = torch.linspace(0, 1, size)[None, :]
    waves = [torch.sin(3 + (5 + k) * rows + (2 + 3 * k) * columns * columns) for k in range(6)]
    return torch.stack(waves).view(2, 3, size, size)
