"""MobileFaceNet (arXiv 1804.07573) in insightface's form of 0.45 G multiply-adds ("mbf").

At width 64 the parameter names and shapes are insightface's (arcface_torch): its published state
dicts load strictly.
"""

import torch
from torch import nn

from data.options import Count
from recognition.backbones import Recognized, Shapes, size_of_map
from recognition.backbones._recompute import recompute

BLOCKS = (4, 6, 2)


class Layers(nn.Module):
    """Layers in a row, added to the input if `residual`. Parameter names contain `layers`."""

    def __init__(self, *layers: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, active: bool = True
) -> Layers:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(outputs)]
    return Layers(*layers, *([nn.PReLU(outputs)] if active else []))


def _bottleneck(
    inputs: int, outputs: int, hidden: int, stride: int, residual: bool = False
) -> Layers:
    """1x1 to `hidden` channels, 3x3 on each channel alone, 1x1 to `outputs`."""
    return Layers(
        _conv(inputs, hidden, 1, 1, 1),
        _conv(hidden, hidden, 3, stride, hidden),
        _conv(hidden, outputs, 1, 1, 1, active=False),
        residual=residual,
    )


def _bottlenecks(channels: int, hidden: int, count: int) -> Layers:
    return Layers(
        *(_bottleneck(channels, channels, hidden, 1, residual=True) for _ in range(count))
    )


class MobileFaceNet(nn.Module):
    """(B,3,size,size) float images in [-1, 1] -> (B,D) embeddings, not normalized."""

    def __init__(
        self, *, width: int, size: int, embedding: int, bgr: bool, checkpoint: bool
    ) -> None:
        super().__init__()
        self.embedding, self.size, self.bgr, self.checkpoint = embedding, size, bgr, checkpoint
        thin, wide, top = 2 * width, 4 * width, 8 * width
        self.layers = nn.ModuleList(
            [
                _conv(3, thin, 3, 2, 1),
                # Two channels per group: insightface doubled the width, but not the groups.
                _conv(thin, thin, 3, 1, width),
                _bottleneck(thin, thin, thin, 2),
                _bottlenecks(thin, thin, BLOCKS[0]),
                _bottleneck(thin, wide, wide, 2),
                _bottlenecks(wide, wide, BLOCKS[1]),
                _bottleneck(wide, wide, top, 2),
                _bottlenecks(wide, wide, BLOCKS[2]),
            ]
        )
        self.conv_sep = _conv(wide, top, 1, 1, 1)
        side = -(-size // 16)  # four strides of two, each rounding up
        whole = Layers(nn.Conv2d(top, top, side, groups=top, bias=False), nn.BatchNorm2d(top))
        self.features = Layers(
            whole, nn.Flatten(), nn.Linear(top, embedding, bias=False), nn.BatchNorm1d(embedding)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flip(1) if self.bgr else images
        for layer in self.layers:
            x = recompute(layer, x) if self.checkpoint and self.training else layer(x)
        # The last layers keep full precision, as published.
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.conv_sep(x.to(next(self.features.parameters()).dtype)))


MARK = "conv_sep.layers.0.weight"


def recognize(shapes: Shapes) -> Recognized:
    """The MobileFaceNet with these parameters."""
    rows, columns = shapes["features.layers.0.layers.0.weight"][2:]
    width, embedding = shapes[MARK][0] // 8, shapes["features.layers.2.weight"][0]
    return {"width": width, "embedding": embedding}, size_of_map(rows * columns)


def build(
    size: int = 112,
    *,
    width: Count = 64,
    embedding: Count = 512,
    bgr: bool = False,
    checkpoint: bool = False,
) -> MobileFaceNet:
    """MobileFaceNet, for square images of `size` pixels per side.

    width: half the channels of the first stage. The published network has 64.
    embedding: numbers per embedding.
    bgr: reverse the color channels inside the network. Set it for published weights that were
        trained on BGR; the images that you give stay RGB.
    checkpoint: compute each block again in the backward pass. This needs less memory and a third
        more time.
    """
    return MobileFaceNet(
        width=width, size=size, embedding=embedding, bgr=bgr, checkpoint=checkpoint
    )
