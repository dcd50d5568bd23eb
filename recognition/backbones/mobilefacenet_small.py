"""MobileFaceNet as in its paper (arXiv 1804.07573, Table 1): half the size of insightface's form.

At width 64 the parameter names and shapes are those of the F²C code's `mobile`, whose state dicts
load strictly. That class returns embeddings of length 1; ours returns them as they are.
"""

import torch
from torch import nn

from data.options import Count
from recognition.backbones import Recognized, Shapes, size_of_map
from recognition.backbones._recompute import recompute

# Expansion, channels in units of the width, repetitions, stride of the first of them.
BOTTLENECKS = ((2, 1, 5, 2), (4, 2, 1, 2), (2, 2, 6, 1), (4, 2, 1, 2), (2, 2, 2, 1))


class Layer(nn.Module):
    """A convolution, batch norm, and PReLU if `active`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs) if active else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1 to more channels, 3x3 on each alone, 1x1 back; added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class SmallMobileFaceNet(nn.Module):
    """(B,3,size,size) float images in [-1, 1] -> (B,D) embeddings, not normalized."""

    def __init__(
        self, *, width: int, size: int, embedding: int, bgr: bool, checkpoint: bool
    ) -> None:
        super().__init__()
        self.embedding, self.size, self.bgr, self.checkpoint = embedding, size, bgr, checkpoint
        self.conv1 = Layer(3, width, 3, stride=2, padding=1)
        self.dw_conv1 = Layer(width, width, 3, padding=1, groups=width)
        blocks, inputs = [], width
        for expansion, factor, count, stride in BOTTLENECKS:
            for at in range(count):
                blocks.append(Bottleneck(inputs, factor * width, expansion, 1 if at else stride))
                inputs = factor * width
        self.blocks = nn.Sequential(*blocks)
        top, side = 8 * width, -(-size // 16)  # four strides of two, each rounding up
        self.conv2 = Layer(inputs, top, 1)
        self.linear7 = Layer(top, top, side, groups=top, active=False)
        self.linear1 = Layer(top, embedding, 1, active=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.dw_conv1(self.conv1(images.flip(1) if self.bgr else images))
        for block in self.blocks:
            x = recompute(block, x) if self.checkpoint and self.training else block(x)
        # The last layers keep full precision.
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv2(x.to(self.conv2.conv.weight.dtype))
            return self.linear1(self.linear7(x)).flatten(1)


MARK = "dw_conv1.conv.weight"


def recognize(shapes: Shapes) -> Recognized:
    """The network with these parameters."""
    rows, columns = shapes["linear7.conv.weight"][2:]
    options = {"width": shapes[MARK][0], "embedding": shapes["linear1.conv.weight"][0]}
    return options, size_of_map(rows * columns)


def build(
    size: int = 112,
    *,
    width: Count = 64,
    embedding: Count = 512,
    bgr: bool = False,
    checkpoint: bool = False,
) -> SmallMobileFaceNet:
    """The MobileFaceNet of the paper, for square images of `size` pixels per side.

    width: channels of the first stage. The published network has 64.
    embedding: numbers per embedding.
    bgr: reverse the color channels inside the network. Set it for published weights that were
        trained on BGR; the images that you give stay RGB.
    checkpoint: compute each block again in the backward pass. This needs less memory and a third
        more time.
    """
    return SmallMobileFaceNet(
        width=width, size=size, embedding=embedding, bgr=bgr, checkpoint=checkpoint
    )
