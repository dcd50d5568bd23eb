"""iResNet, ArcFace's improved residual network (arXiv 1801.07698; blocks of arXiv 2004.04989).

At width 64 the parameter names and shapes are insightface's (arcface_torch): its published state
dicts load strictly.
"""

from typing import Literal

import torch
from torch import nn

from data.options import Count, ShareBelowOne
from recognition.backbones import Recognized, Shapes, size_of_map
from recognition.backbones._enlarge import enlarged
from recognition.backbones._recompute import recompute

LAYERS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}


class Block(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 (strided), BN, added to the input (or its strided 1x1 projection)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """(B,3,size,size) float images in [-1, 1] -> (B,D) embeddings, not normalized.

    Smaller images are taken, too: their last feature map is enlarged to that of `size`.
    """

    takes_smaller_images = True

    def __init__(
        self,
        layers: tuple[int, ...],
        *,
        width: int,
        size: int,
        embedding: int,
        dropout: float,
        bgr: bool,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.embedding, self.size, self.bgr, self.checkpoint = embedding, size, bgr, checkpoint
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.layer1 = _stage(width, width, layers[0])
        self.layer2 = _stage(width, 2 * width, layers[1])
        self.layer3 = _stage(2 * width, 4 * width, layers[2])
        self.layer4 = _stage(4 * width, 8 * width, layers[3])
        self.bn2 = nn.BatchNorm2d(8 * width)
        self.dropout = nn.Dropout(dropout)
        self.side = -(-size // 16)  # four strides of two, each rounding up
        self.fc = nn.Linear(8 * width * self.side**2, embedding)
        self.features = nn.BatchNorm1d(embedding)
        # The weight stays one, as published: the margin loss sets the scale.
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(images.flip(1) if self.bgr else images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = recompute(block, x) if self.checkpoint and self.training else block(x)
        x = self.dropout(torch.flatten(enlarged(self.bn2(x), self.side), 1))
        # The embedding layer keeps full precision, as published.
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        Block(inputs, outputs, 2), *(Block(outputs, outputs, 1) for _ in range(blocks - 1))
    )


MARK = "layer1.0.prelu.weight"


def recognize(shapes: Shapes) -> Recognized:
    """The iResNet with these parameters."""
    blocks = tuple(
        len({name.split(".")[1] for name in shapes if name.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    depths = {layers: depth for depth, layers in LAYERS.items()}
    if blocks not in depths:
        known = ", ".join(f"{layers} for {depth}" for layers, depth in depths.items())
        raise ValueError(f"its stages have {blocks} blocks, and an iresnet has {known}")
    width, (embedding, inputs) = shapes["conv1.weight"][0], shapes["fc.weight"]
    options = {"depth": depths[blocks], "width": width, "embedding": embedding}
    return options, size_of_map(inputs // (8 * width))


def build(
    size: int = 112,
    *,
    depth: Literal[18, 34, 50, 100, 200] = 50,
    width: Count = 64,
    embedding: Count = 512,
    dropout: ShareBelowOne = 0.0,
    bgr: bool = False,
    checkpoint: bool = False,
) -> IResNet:
    """An iResNet, for square images of `size` pixels per side.

    depth: number of layers.
    width: channels of the first stage. The published networks have 64.
    embedding: numbers per embedding.
    dropout: probability of dropping a number before the embedding layer.
    bgr: reverse the color channels inside the network. Set it for published weights that were
        trained on BGR; the images that you give stay RGB.
    checkpoint: compute each block again in the backward pass. This needs less memory and a third
        more time.
    """
    return IResNet(
        LAYERS[depth],
        width=width,
        size=size,
        embedding=embedding,
        dropout=dropout,
        bgr=bgr,
        checkpoint=checkpoint,
    )
