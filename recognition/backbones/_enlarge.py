"""Feature maps of smaller images, brought to the side that a network's last layer needs."""

import torch
import torch.nn.functional as F


def enlarged(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Maps (B,C,S,S) -> (B,C,side,side), bilinear; maps of that side stay as they are."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, size=(side, side), mode="bilinear")
