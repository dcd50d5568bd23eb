"""Names and shapes of the published networks, stated as lists, and random weights for them.

`test_load.py` compares the lists at full width with hashes of the genuine classes' state dicts.
"""

from __future__ import annotations

import math
import zlib

import torch

Shapes = dict[str, tuple[int, ...]]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(name: str, width: int, affine: bool = True) -> Shapes:
    """A batch norm."""
    kept = NORM if affine else NORM[2:]
    return {f"{name}.{one}": () if one == NORM[-1] else (width,) for one in kept}


def iresnet(blocks: tuple[int, ...], width: int = 64, side: int = 7, out: int = 512) -> Shapes:
    """arcface_torch's iresnet; FastFace's, F²C's ir50 and CVLface's iresnet_insightface too."""
    found = {"conv1.weight": (width, 3, 3, 3), **norm("bn1", width), "prelu.weight": (width,)}
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width << stage
        for block in range(count):
            at = f"layer{stage + 1}.{block}"
            found |= norm(f"{at}.bn1", inputs)
            found[f"{at}.conv1.weight"] = (outputs, inputs, 3, 3)
            found |= norm(f"{at}.bn2", outputs)
            found[f"{at}.prelu.weight"] = (outputs,)
            found[f"{at}.conv2.weight"] = (outputs, outputs, 3, 3)
            found |= norm(f"{at}.bn3", outputs)
            if block == 0:
                found[f"{at}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                found |= norm(f"{at}.downsample.1", outputs)
            inputs = outputs
    last = {"fc.weight": (out, inputs * side * side), "fc.bias": (out,)}
    return found | norm("bn2", inputs) | last | norm("features", out)


def ir(
    units: tuple[int, ...], se: bool = False, width: int = 64, side: int = 7, out: int = 512
) -> Shapes:
    """AdaFace's IR and IR-SE networks, and CVLface's."""
    found: Shapes = {"input_layer.0.weight": (width, 3, 3, 3)}
    found |= {**norm("input_layer.1", width), "input_layer.2.weight": (width,)}
    inputs, at = width, 0
    for stage, count in enumerate(units):
        outputs = width << stage
        for _ in range(count):
            name = f"body.{at}.res_layer"
            if inputs != outputs:
                found[f"body.{at}.shortcut_layer.0.weight"] = (outputs, inputs, 1, 1)
                found |= norm(f"body.{at}.shortcut_layer.1", outputs)
            found |= norm(f"{name}.0", inputs)
            found[f"{name}.1.weight"] = (outputs, inputs, 3, 3)
            found |= norm(f"{name}.2", outputs)
            found[f"{name}.3.weight"] = (outputs,)
            found[f"{name}.4.weight"] = (outputs, outputs, 3, 3)
            found |= norm(f"{name}.5", outputs)
            if se:
                found[f"{name}.se_block.fc1.weight"] = (outputs // 16, outputs, 1, 1)
                found[f"{name}.se_block.fc2.weight"] = (outputs, outputs // 16, 1, 1)
            inputs, at = outputs, at + 1
    found |= norm("output_layer.0", inputs)
    found |= {"output_layer.3.weight": (out, inputs * side * side), "output_layer.3.bias": (out,)}
    return found | norm("output_layer.4", out, affine=False)


def mobilefacenet(width: int = 64, side: int = 7, out: int = 512) -> Shapes:
    """arcface_torch's mbf."""
    thin, wide, top = 2 * width, 4 * width, 8 * width

    def conv(name: str, shape: tuple[int, ...], active: bool = True) -> Shapes:
        found = {f"{name}.layers.0.weight": shape, **norm(f"{name}.layers.1", shape[0])}
        return {**found, f"{name}.layers.2.weight": (shape[0],)} if active else found

    def unit(name: str, inputs: int, hidden: int, outputs: int) -> Shapes:
        return {
            **conv(f"{name}.layers.0", (hidden, inputs, 1, 1)),
            **conv(f"{name}.layers.1", (hidden, 1, 3, 3)),
            **conv(f"{name}.layers.2", (outputs, hidden, 1, 1), active=False),
        }

    def units(name: str, count: int, width: int) -> Shapes:
        each = [unit(f"{name}.layers.{at}", width, width, width) for at in range(count)]
        return {key: shape for one in each for key, shape in one.items()}

    return {
        **conv("layers.0", (thin, 3, 3, 3)),
        **conv("layers.1", (thin, 2, 3, 3)),
        **unit("layers.2", thin, thin, thin),
        **units("layers.3", 4, thin),
        **unit("layers.4", thin, wide, wide),
        **units("layers.5", 6, wide),
        **unit("layers.6", wide, top, wide),
        **units("layers.7", 2, wide),
        **conv("conv_sep", (top, wide, 1, 1)),
        "features.layers.0.layers.0.weight": (top, 1, side, side),
        **norm("features.layers.0.layers.1", top),
        "features.layers.2.weight": (out, top),
        **norm("features.layers.3", out),
    }


def mobilefacenet_small(width: int = 64, side: int = 7, out: int = 512) -> Shapes:
    """F²C's mobile."""
    wide, top = 2 * width, 8 * width

    def layer(name: str, shape: tuple[int, ...], active: bool = True) -> Shapes:
        found = {f"{name}.conv.weight": shape, **norm(f"{name}.bn", shape[0])}
        return {**found, f"{name}.prelu.weight": (shape[0],)} if active else found

    found = {
        **layer("conv1", (width, 3, 3, 3)),
        **layer("dw_conv1", (width, 1, 3, 3)),
        **layer("conv2", (top, wide, 1, 1)),
        **layer("linear7", (top, 1, side, side), active=False),
        **layer("linear1", (out, top, 1, 1), active=False),
    }
    hidden = [2 * width] * 5 + [4 * width] + [4 * width] * 6 + [8 * width] + [4 * width] * 2
    inputs = width
    for block, inner in enumerate(hidden):
        name, outputs = f"blocks.{block}.conv", width if block < 5 else wide
        found[f"{name}.0.weight"] = (inner, inputs, 1, 1)
        found |= {**norm(f"{name}.1", inner), f"{name}.2.weight": (inner,)}
        found[f"{name}.3.weight"] = (inner, 1, 3, 3)
        found |= {**norm(f"{name}.4", inner), f"{name}.5.weight": (inner,)}
        found[f"{name}.6.weight"] = (outputs, inner, 1, 1)
        found |= norm(f"{name}.7", outputs)
        inputs = outputs
    return found


def vit(
    width: int, depth: int, patch: int = 9, grid: int = 12, mlp: int = 4, out: int = 512
) -> Shapes:
    """arcface_torch's ViT; CVLface's has no mask token, and another MLP."""
    found: Shapes = {"mask_token": (1, 1, width), "pos_embed": (1, grid * grid, width)}
    found |= {"patch_embed.proj.weight": (width, 3, patch, patch)}
    found |= {"patch_embed.proj.bias": (width,)}
    for block in range(depth):
        name = f"blocks.{block}"
        for one in ("norm1", "norm2"):
            found |= {f"{name}.{one}.weight": (width,), f"{name}.{one}.bias": (width,)}
        found[f"{name}.attn.qkv.weight"] = (3 * width, width)
        found |= {f"{name}.attn.proj.weight": (width, width), f"{name}.attn.proj.bias": (width,)}
        found[f"{name}.mlp.fc1.weight"] = (mlp * width, width)
        found[f"{name}.mlp.fc1.bias"] = (mlp * width,)
        found[f"{name}.mlp.fc2.weight"] = (width, mlp * width)
        found[f"{name}.mlp.fc2.bias"] = (width,)
    found |= {"norm.weight": (width,), "norm.bias": (width,)}
    found |= {"feature.0.weight": (width, grid * grid * width), **norm("feature.1", width)}
    return {**found, "feature.2.weight": (out, width), **norm("feature.3", out)}


def drawn(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Random weights that depend on the names only; activations stay in range."""
    state = {}
    for name, shape in shapes.items():
        draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) > 1:
            spread = (2 / math.prod(shape[1:])) ** 0.5
            state[name] = torch.randn(shape, generator=draw) * spread
        elif name.endswith(("running_var", "weight")):
            state[name] = torch.rand(shape, generator=draw) * 0.2 + 0.5
        else:
            state[name] = torch.randn(shape, generator=draw) * 0.1
    return state
