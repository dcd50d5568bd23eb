"""A backbone as an ONNX file, in the form that insightface's models have."""

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from recognition.models.facts import ModelFacts, Normalization, facts_json
from recognition.models.onnx_file import METADATA

INPUT, OUTPUT = "input", "embedding"
USUAL = Normalization()
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_BYTES = 1_900_000_000  # one file of protobuf holds less than 2 GiB


def check_packages() -> None:
    """ValueError with what to install, unless the packages of the extra `onnx` are there."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--to onnx needs {', '.join(missing)}; install the extra: pip install -e '.[onnx]'"
        )


class _Exported(nn.Module):
    """float32 (B,3,S,S) RGB in [-1, 1] -> float32 (B,D), as the options say."""

    def __init__(
        self,
        backbone: nn.Module,
        normalization: Normalization,
        *,
        half: bool,
        mirror: bool,
        l2_norm: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.normalization = backbone, normalization
        self.half_precision, self.mirror, self.l2_norm = half, mirror, l2_norm

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, own = images, self.normalization
        if own != USUAL:
            x = (x * USUAL.std + (USUAL.mean - own.mean)) / own.std
        if self.half_precision:
            x = x.half()
        if self.mirror:
            x = torch.cat([x, x.flip(3)])
        embeddings: torch.Tensor = self.backbone(x).float()
        if self.mirror:
            embeddings = embeddings.unflatten(0, (2, -1)).sum(0)
        return F.normalize(embeddings) if self.l2_norm else embeddings


def write_onnx(
    backbone: nn.Module,
    facts: ModelFacts,
    path: Path,
    *,
    half: bool = False,
    mirror: bool = False,
    l2_norm: bool = False,
) -> None:
    """Write a backbone as one ONNX file with the opset that this version of torch writes best.

    Input `input`: float32 (B,3,S,S), RGB, (x − 127.5) / 127.5 for pixels x from 0 to 255; any B.
    Networks that want BGR or other numbers get them inside the graph. Output `embedding`: float32
    (B,D). The metadata of the file hold the text of its model.json, `mirror` and `l2_norm`.

    half: weights and arithmetic in float16. mirror: the sum of the embeddings of an image and of
    its mirror image. l2_norm: embeddings of length 1. ValueError for a model that one file can't
    hold.
    """
    size = sum(p.numel() * p.element_size() for p in backbone.parameters()) // (1 + half)
    if size > MOST_BYTES:
        raise ValueError(
            f"the weights have {size:,} bytes, and an ONNX file holds {MOST_BYTES:,}; use "
            "--precision fp16, or --to safetensors"
        )
    backbone = copy.deepcopy(backbone).eval()
    if half:
        fold_statistics(backbone)
        backbone.half()
    module = _Exported(
        backbone, facts.normalization, half=half, mirror=mirror, l2_norm=l2_norm
    ).eval()
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 3, facts.size, facts.size),),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    # The exporter writes stack traces with the folders of this machine.
    for node in program.model.graph:
        node.metadata_props.clear()
    told = replace(
        facts,
        normalization=USUAL,
        precision="fp16" if half else "fp32",
        channels_last=False,
    )
    program.model.metadata_props.update(
        {METADATA: facts_json(told), "mirror": str(mirror), "l2_norm": str(l2_norm)}
    )
    program.save(path, external_data=False)


def fold_statistics(backbone: nn.Module) -> None:
    """Move the running statistics of each batch norm into its weight and bias.

    The function that it computes stays the same. A running variance may be larger than float16
    allows (65,504), although the activations are not.
    """
    for norm in backbone.modules():
        if not isinstance(norm, _BatchNorm):
            continue
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale *= norm.weight.detach().double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift += norm.bias.detach().double()
        norm.weight = nn.Parameter(scale.float())
        norm.bias = nn.Parameter(shift.float())
        norm.running_mean = torch.zeros_like(norm.running_mean)
        norm.running_var = torch.ones_like(norm.running_var)
        norm.eps = 0.0
