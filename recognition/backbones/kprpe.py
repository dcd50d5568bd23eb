"""Vision transformers that know where the landmarks of a face lie (KP-RPE, arXiv 2403.14852).

Attention between two patches gets a bias. It depends on the offset between the patches, as in iRPE
(arXiv 2107.14222), and on where the five landmarks lie, seen from the patch that asks. Parameter
names and shapes are those of CVLface, `keypoint_linear` with them.

Landmarks are shares of the side of the image, x before y: 0 is the outer edge of its first pixels,
and 1 that of its last. They are the eyes, the nose tip and the corners of the mouth, and those on
the left side of the image come first.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from data.landmarks import TEMPLATE_SHARES
from data.options import Count, Range, ShareBelowOne
from recognition.backbones import USUAL_SIZE, Recognized, Shapes
from recognition.backbones._recompute import recompute
from recognition.backbones.vit import Block, Patches

# Of iRPE's piecewise function, which all published networks have: offsets up to ALPHA patches are
# told apart, those of GAMMA and more are one, and BETA bounds the numbers of the buckets.
ALPHA, BETA, GAMMA = 1.9, 3.8, 15.2
REACH = int(BETA)
BUCKETS = (2 * REACH + 1) ** 2
"""Different offsets between two patches: seven of the rows, times seven of the columns."""


@dataclass(frozen=True)
class Variant:
    """A published network."""

    depth: int
    heads: int
    mlp: int


VARIANTS = {"small": Variant(12, 8, 5), "base": Variant(24, 16, 3)}


def bucket(offset: int) -> int:
    """Number from -3 to 3 of an offset in patches: iRPE, equation 18, cut to a whole number."""
    distance = float(abs(offset))
    if distance > ALPHA:
        place = math.log(distance / ALPHA) / math.log(GAMMA / ALPHA)
        distance = min(round(ALPHA + place * (BETA - ALPHA)), BETA)
    return int(math.copysign(distance, offset))


def bucket_places(side: int) -> torch.Tensor:
    """int64 (T·T,) for a grid of T = side² patches.

    Entry i·T + j is the place of the bucket of patches i and j among the T·BUCKETS encodings.
    """
    offsets = torch.arange(side)[:, None] - torch.arange(side)
    numbers = torch.tensor([bucket(one) + REACH for one in range(1 - side, side)])
    lines = numbers[offsets + side - 1]
    pairs = lines[:, None, :, None] * (2 * REACH + 1) + lines[None, :, None, :]
    tokens = side * side
    return (torch.arange(tokens)[:, None] * BUCKETS + pairs.reshape(tokens, tokens)).flatten()


class Attention(nn.Module):
    """Multi-head self-attention (B,T,W) -> (B,T,W) with a bias between each two tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, encodings: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """encodings: (B or 1,heads,T,BUCKETS). places: `bucket_places`."""
        # (B,T,3W) -> three of (B,heads,T,W/heads)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = x.shape[1]
        bias = encodings.flatten(2).index_select(2, places).unflatten(2, (tokens, tokens))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class KeypointTransformer(nn.Module):
    """(B,3,size,size) float images in [-1, 1] -> (B,D) embeddings, not normalized.

    needs_landmarks: whether each call has to give the landmarks of its images.
    """

    centers: torch.Tensor
    places: torch.Tensor
    template: torch.Tensor

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
        needs_landmarks: bool,
        bgr: bool,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.embedding, self.size, self.bgr = embedding, size, bgr
        self.needs_landmarks, self.checkpoint = needs_landmarks, checkpoint
        self.depth, self.heads = depth, heads
        side = size // patch
        tokens = side * side
        self.patch_embed = Patches(width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))

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
        self.keypoint_linear = nn.Linear(TEMPLATE_SHARES.size, depth * heads * BUCKETS)

        # Of patch centers (T,1,2), in the unit of landmarks.
        line = (torch.arange(side) + 0.5) / side
        centers = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=2).view(tokens, 1, 2)
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("places", bucket_places(side), persistent=False)
        template = torch.tensor(TEMPLATE_SHARES.tolist())
        self.register_buffer("template", template[None], persistent=False)

        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.keypoint_linear.weight)  # training begins without any bias

    def forward(self, images: torch.Tensor, landmarks: torch.Tensor | None = None) -> torch.Tensor:
        """landmarks: (B,5,2), shares of the side. Without them the template's points are used."""
        if landmarks is None:
            if self.needs_landmarks:
                raise ValueError(
                    "this network needs the landmarks of each image, because backbone.landmarks "
                    "is given; give them, or choose template, which takes those of the template"
                )
            landmarks = self.template
        x = self.patch_embed(images.flip(1) if self.bgr else images) + self.pos_embed
        with torch.autocast(x.device.type, enabled=False):
            encodings = self._encodings(landmarks)
        for block, own in zip(self.blocks, encodings, strict=True):
            inputs = (x, own, self.places)
            x = recompute(block, *inputs) if self.checkpoint and self.training else block(*inputs)

        # The last layers keep full precision.
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(self.norm.weight.dtype))
            return self.feature(x.flatten(1))

    def _encodings(self, landmarks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B,heads,T,BUCKETS) for each block, of landmarks (B,5,2)."""
        relative = self.centers - landmarks[:, None].to(self.centers.dtype)  # (B,T,5,2)
        every = self.keypoint_linear(relative.flatten(2))
        return every.unflatten(2, (self.depth, self.heads, BUCKETS)).permute(2, 0, 3, 1, 4).unbind()


MARK = "keypoint_linear.weight"
CONTAINS = "vit"
"""The backbone whose mark these networks have, too."""


def recognize(shapes: Shapes) -> Recognized:
    """The transformer with these parameters; its landmarks were given when it was trained."""
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    heads, rest = divmod(shapes[MARK][0], max(depth, 1) * BUCKETS)
    if rest:
        raise ValueError(
            f"{MARK} has {shapes[MARK][0]} rows, expected a multiple of {depth} blocks × {BUCKETS}"
        )
    mlp = shapes["blocks.0.mlp.fc1.weight"][0] // width
    named = [name for name, one in VARIANTS.items() if one == Variant(depth, heads, mlp)]
    options: dict[str, Any] = {"landmarks": "given", "patch": patch, "width": width}
    options |= {"variant": named[0]} if named else {"depth": depth, "heads": heads, "mlp": mlp}
    options["embedding"] = shapes["feature.2.weight"][0]
    side = math.isqrt(shapes["pos_embed"][1]) * patch
    return options, USUAL_SIZE if side <= USUAL_SIZE < side + patch else side


def build(
    size: int = 112,
    *,
    landmarks: Literal["template", "given"],
    variant: Literal["small", "base"] = "small",
    width: Count = 512,
    depth: Annotated[int, Range(at_least=1, at_most=1000)] | None = None,
    heads: Count | None = None,
    patch: Count = 8,
    mlp: Count | None = None,
    embedding: Count = 512,
    drop_path: ShareBelowOne = 0.1,
    bgr: bool = False,
    checkpoint: bool = False,
) -> KeypointTransformer:
    """A face transformer that knows the landmarks, for square images of `size` pixels per side.

    landmarks: template takes the five points of the ArcFace template for every image, which is
        right for exactly aligned crops. given takes those that are given with each image.
    variant: the published network whose value is used for every option below that is null.
    width: numbers per token, a multiple of `heads`.
    depth: number of blocks. null: the variant's value.
    heads: attention heads per block. null: the variant's value.
    patch: side of a patch in pixels.
    mlp: width of the hidden layer in each block, as a multiple of the width of a token. null: the
        variant's value.
    embedding: numbers per embedding.
    drop_path: probability that a sample skips the last block. The blocks before it are skipped less
        often.
    bgr: reverse the color channels inside the network. Set it for published weights that were
        trained on BGR; the images that you give stay RGB.
    checkpoint: compute each block again in the backward pass. This needs less memory and a third
        more time.
    """
    chosen = VARIANTS[variant]
    heads = chosen.heads if heads is None else heads
    if width % heads:
        raise ValueError(
            f"backbone.width: found {width}, expected a multiple of backbone.heads, {heads}"
        )
    if size < patch:
        raise ValueError(f"backbone.patch: found {patch}, expected at most data.size, {size}")
    return KeypointTransformer(
        width=width,
        depth=chosen.depth if depth is None else depth,
        heads=heads,
        patch=patch,
        mlp=chosen.mlp if mlp is None else mlp,
        size=size,
        embedding=embedding,
        drop_path=drop_path,
        needs_landmarks=landmarks == "given",
        bgr=bgr,
        checkpoint=checkpoint,
    )
