"""IR and IR-SE networks of AdaFace (arXiv 2204.00964; blocks of arXiv 1801.07698) and CVLface.

At width 64 the parameter names and shapes are those of AdaFace's `Backbone`, so its published state
dicts load strictly (AdaFace's own checkpoints prefix them with "model.", CVLface's with "net.").
AdaFace's class returns the normalized embedding and its length; ours returns their product.
"""

from typing import Literal

import torch
from torch import nn

from data.options import Count, ShareBelowOne
from recognition.backbones import Recognized, Shapes, size_of_map
from recognition.backbones._enlarge import enlarged
from recognition.backbones._recompute import recompute

UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    101: (3, 13, 30, 3),
}


class SqueezeExcite(nn.Module):
    """Each channel times a gate in (0, 1), computed from all channels' means (arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, max(channels // 16, 1), 1, bias=False)
        self.fc2 = nn.Conv2d(max(channels // 16, 1), channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Unit(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 (strided), BN, squeeze-excite if `se`; added to the input.

    The input is strided, or projected where the number of channels changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, se: bool) -> None:
        super().__init__()
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if se:
            self.res_layer.add_module("se_block", SqueezeExcite(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IR(nn.Module):
    """(B,3,size,size) float images in [-1, 1] -> (B,D) embeddings, not normalized.

    Smaller images are taken, too: their last feature map is enlarged to that of `size`.
    """

    takes_smaller_images = True

    def __init__(
        self,
        units: tuple[int, ...],
        *,
        se: bool,
        width: int,
        size: int,
        embedding: int,
        dropout: float,
        bgr: bool,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.embedding, self.size, self.bgr, self.checkpoint = embedding, size, bgr, checkpoint
        stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.input_layer = nn.Sequential(stem, nn.BatchNorm2d(width), nn.PReLU(width))
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        body = []
        for inputs, outputs, count in zip(widths, widths[1:], units, strict=False):
            body += [
                Unit(inputs, outputs, 2, se),
                *(Unit(outputs, outputs, 1, se) for _ in range(count - 1)),
            ]
        self.body = nn.Sequential(*body)
        self.side = -(-size // 16)  # four strides of two, each rounding up
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(8 * width),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(8 * width * self.side**2, embedding),
            nn.BatchNorm1d(embedding, affine=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.input_layer(images.flip(1) if self.bgr else images)
        for unit in self.body:
            x = recompute(unit, x) if self.checkpoint and self.training else unit(x)
        x = enlarged(x, self.side)
        with torch.autocast(x.device.type, enabled=False):
            return self.output_layer(x.to(self.output_layer[3].get_parameter("weight").dtype))


MARK = "input_layer.0.weight"


def recognize(shapes: Shapes) -> Recognized:
    """The IR or IR-SE network with these parameters."""
    width = shapes[MARK][0]
    outputs = [shape[0] for name, shape in shapes.items() if name.endswith(".res_layer.1.weight")]
    units = tuple(outputs.count(width << stage) for stage in range(4))
    depths = {layers: depth for depth, layers in UNITS.items()}
    if units not in depths or sum(units) != len(outputs):
        known = ", ".join(f"{layers} for {depth}" for layers, depth in depths.items())
        raise ValueError(f"its stages have {units} blocks, and an ir has {known}")
    embedding, inputs = shapes["output_layer.3.weight"]
    se = any(".se_block." in name for name in shapes)
    options = {"depth": depths[units], "se": se, "width": width, "embedding": embedding}
    return options, size_of_map(inputs // (8 * width))


def build(
    size: int = 112,
    *,
    depth: Literal[18, 34, 50, 101] = 50,
    se: bool = False,
    width: Count = 64,
    embedding: Count = 512,
    dropout: ShareBelowOne = 0.4,
    bgr: bool = False,
    checkpoint: bool = False,
) -> IR:
    """An IR network, for square images of `size` pixels per side.

    depth: number of layers.
    se: whether each block has squeeze-and-excitation, as in IR-SE.
    width: channels of the first stage. The published networks have 64.
    embedding: numbers per embedding.
    dropout: probability of dropping a number before the embedding layer.
    bgr: reverse the color channels inside the network. Set it for published weights that were
        trained on BGR, as AdaFace's were; the images that you give stay RGB.
    checkpoint: compute each block again in the backward pass. This needs less memory and a third
        more time.
    """
    return IR(
        UNITS[depth],
        se=se,
        width=width,
        size=size,
        embedding=embedding,
        dropout=dropout,
        bgr=bgr,
        checkpoint=checkpoint,
    )
