"""Vision transformers for faces (arXiv 2010.11929), as insightface's arcface_torch trains them.

There is no class token: the embedding layer sees all patches. In training a share of the patches
skips the blocks, and a learned token replaces them before the embedding layer (arXiv 2111.06377).
Parameter names and shapes are insightface's.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from data.options import Count, Range, ShareBelowOne
from recognition.backbones import USUAL_SIZE, Recognized, Shapes
from recognition.backbones._recompute import recompute


@dataclass(frozen=True)
class Variant:
    """Width, number of blocks, and the published regularization.

    mask: share of the patches hidden in training. insightface's code hides a tenth, whichever share
    its configs ask for, so its published models were trained with a tenth.
    """

    width: int
    depth: int
    drop_path: float = 0.1
    mask: float = 0.1


VARIANTS = {
    "tiny": Variant(256, 12),
    "small": Variant(512, 12),
    "base": Variant(512, 24),
    "large": Variant(768, 24, drop_path=0.05),
}


class Attention(nn.Module):
    """Multi-head self-attention (B,T,W) -> (B,T,W); no bias on q, k, v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (B,T,3W) -> three of (B,heads,T,W/heads)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.relu6(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    In training a sample skips each of the two with probability `drop` (arXiv 1603.09382). What the
    block gets beside x, (B,T,W), goes to `attention`.
    """

    def __init__(self, width: int, attention: nn.Module, mlp: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(width)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp * width)

    def forward(self, x: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
        x = x + self._drop_path(self.attn(self.norm1(x), *beside))
        return x + self._drop_path(self.mlp(self.norm2(x)))

    def _drop_path(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop == 0:
            return branch

        # Kept branches are scaled, so that their expected value is the branch.
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - self.drop)
        return branch * kept / (1 - self.drop)


class Patches(nn.Module):
    """(B,3,size,size) -> (B,T,W): one token per patch.

    The few pixels beyond the last whole patch are not used.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """(B,3,size,size) float images in [-1, 1] -> (B,D) embeddings, not normalized."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        mlp: int,
        size: int,
        embedding: int,
        drop_path: float,
        mask: float,
        bgr: bool,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.embedding, self.size, self.bgr = embedding, size, bgr
        self.mask, self.checkpoint = mask, checkpoint
        tokens = (size // patch) ** 2
        self.patch_embed = Patches(width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=mask > 0)

        # The probability of a skip rises linearly from the first block to the last.
        drops = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            [Block(width, Attention(width, heads), mlp, drop) for drop in drops]
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(tokens * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding, bias=False),
            nn.BatchNorm1d(embedding, eps=2e-5),
        )
        # The published code truncates these at 100 standard deviations, which changes nothing.
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images.flip(1) if self.bgr else images) + self.pos_embed
        shape, kept = x.shape, torch.empty(0)

        # The blocks see a random subset of the patches, a different one for each image.
        masking = self.training and self.mask > 0
        if masking:
            order = torch.rand(shape[:2], device=x.device).argsort(dim=1)
            kept = order[:, : int(shape[1] * (1 - self.mask)), None].expand(-1, -1, shape[2])
            x = x.gather(1, kept)
        for block in self.blocks:
            x = recompute(block, x) if self.checkpoint and self.training else block(x)

        # The last layers keep full precision. The mask token replaces the hidden patches.
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(self.norm.weight.dtype))
            if masking:
                x = self.mask_token.expand(shape).scatter(1, kept, x)
            return self.feature(x.flatten(1))


MARK = "patch_embed.proj.weight"


def recognize(shapes: Shapes) -> Recognized:
    """The transformer with these parameters.

    The number of heads leaves no trace in them. It is 8 in all published networks of this form but
    CVLface's base, which is the one with patches of 8 and an MLP three times as wide as a token.
    """
    width, _, patch, _ = shapes[MARK]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    mlp = shapes["blocks.0.mlp.fc1.weight"][0] // width
    named = [name for name, one in VARIANTS.items() if (one.width, one.depth) == (width, depth)]
    options: dict[str, Any] = {"variant": named[0]} if named else {"width": width, "depth": depth}
    options |= {"heads": 16 if (patch, mlp) == (8, 3) else 8, "patch": patch, "mlp": mlp}
    options["embedding"] = shapes["feature.2.weight"][0]
    if "mask_token" not in shapes:
        options["mask"] = 0.0
    side = math.isqrt(shapes["pos_embed"][1]) * patch
    return options, USUAL_SIZE if side <= USUAL_SIZE < side + patch else side


def build(
    size: int = 112,
    *,
    variant: Literal["tiny", "small", "base", "large"] = "tiny",
    width: Count | None = None,
    depth: Annotated[int, Range(at_least=1, at_most=1000)] | None = None,
    heads: Count = 8,
    patch: Count = 9,
    mlp: Count = 4,
    embedding: Count = 512,
    drop_path: ShareBelowOne | None = None,
    mask: ShareBelowOne | None = None,
    bgr: bool = False,
    checkpoint: bool = False,
) -> VisionTransformer:
    """A face transformer, for square images of `size` pixels per side.

    variant: the published network whose value is used for every option below that is null.
    width: numbers per token, a multiple of `heads`. null: the variant's value.
    depth: number of blocks. null: the variant's value.
    heads: attention heads per block.
    patch: side of a patch in pixels.
    mlp: width of the hidden layer in each block, as a multiple of the width of a token.
    embedding: numbers per embedding.
    drop_path: probability that a sample skips the last block. The blocks before it are skipped less
        often. null: the variant's value.
    mask: share of the patches that are hidden in training. null: the variant's value.
    bgr: reverse the color channels inside the network. Set it for published weights that were
        trained on BGR; the images that you give stay RGB.
    checkpoint: compute each block again in the backward pass. This needs less memory and a third
        more time.
    """
    chosen = VARIANTS[variant]
    width = chosen.width if width is None else width
    if width % heads:
        raise ValueError(
            f"backbone.width: found {width}, expected a multiple of backbone.heads, {heads}"
        )
    if size < patch:
        raise ValueError(f"backbone.patch: found {patch}, expected at most data.size, {size}")
    return VisionTransformer(
        width=width,
        depth=chosen.depth if depth is None else depth,
        heads=heads,
        patch=patch,
        mlp=mlp,
        size=size,
        embedding=embedding,
        drop_path=chosen.drop_path if drop_path is None else drop_path,
        mask=chosen.mask if mask is None else mask,
        bgr=bgr,
        checkpoint=checkpoint,
    )
