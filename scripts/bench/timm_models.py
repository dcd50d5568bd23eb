"""A dozen networks of timm as backbones: built, trained for a step, exported and loaded again.

    python -m scripts.bench.timm_models
    python -m scripts.bench.timm_models --models resnet50 vit_base_patch14_dinov2 --size 224

Weights are random. A step of SGD gives every parameter a gradient, then the network embeds 64 drawn
faces in PyTorch, from its model folder, and from its ONNX file. The columns show by how much the
cosines of their pairs differ, as tools.export compares them.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import recognition
from data.options import Count
from recognition.backbones import embedding_of
from recognition.config import Part
from recognition.models.facts import ModelFacts
from recognition.models.model import Model
from recognition.models.model_folder import write_model_folder
from recognition.parse import build_part
from scripts._tables import show_table
from tools._backbone import BACKBONES, trace
from tools._cli import command
from tools.export import largest_difference, read_faces, run_torch, write_graph

MODELS = (
    "resnet18",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224",
    "mobilenetv4_conv_small",
    "fastvit_t8",
    "efficientnet_b0",
    "ghostnet_100",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "edgenext_xx_small",
)


def trained_step(network: nn.Module, pixels: torch.Tensor) -> int:
    """Take steps of SGD on drawn faces; returns how many parameters never got a gradient."""
    inputs = pixels.float() / 127.5 - 1
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    without = {name for name, _ in network.named_parameters()}
    # Some gates start at 0, so that what lies behind them gets no gradient in the first step.
    for half in inputs.split(len(inputs) // 2):
        directions = torch.linspace(-1, 1, embedding_of(network))
        (network(half) * directions).square().mean().backward()
        grads = ((name, one.grad) for name, one in network.named_parameters())
        without -= {name for name, grad in grads if grad is not None and grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    return len(without)


def check(model: str, size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """One row: a network from its construction to its files."""
    began = time.process_time()
    torch.manual_seed(0)
    part = Part("timm", {"model": model, **options})
    network: nn.Module = build_part(BACKBONES, part, size=size)
    planned = trace(part, 2, size, "fp32")  # batch norm needs two images
    pixels, _ = read_faces(None, size)
    without = trained_step(network, pixels)
    facts = ModelFacts(architecture=part, size=size)
    here = Model(network.eval(), facts, torch.device("cpu"))
    expected = run_torch(here, pixels)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model_folder(folder / "model", facts, network.state_dict(), "")
        again = run_torch(recognition.load(folder / "model", device="cpu"), pixels)
        graph = write_graph(here, folder, half=False, mirror=False, l2_norm=False)(pixels)
    return {
        "model": model,
        "parameters, M": f"{sum(one.numel() for one in network.parameters()) / 1e6:.1f}",
        "multiply-adds, G": f"{planned.multiply_adds / 2e9:.2f}",
        "without gradient": without,
        "loaded again": f"{largest_difference(expected, again):.1e}",
        "ONNX": f"{largest_difference(expected, graph):.1e}",
        "CPU seconds": f"{time.process_time() - began:.0f}",
    }


def run(*, models: tuple[str, ...] = MODELS, size: Count = 112, options: str = "{}") -> Any:
    """Check the models one after another.

    models: names in timm.
    size: side of the images in pixels.
    options: further options of the backbone as JSON, such as {"pool": "timm"}.
    """
    given = json.loads(options)
    return {"rows": show_table(check(model, size, given) for model in models)}


main = command(run)
