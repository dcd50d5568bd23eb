"""The margin softmax over many classes, computed a chunk of classes at a time, on one rank or
sharded over several.

Nothing of size B x C exists: the forward pass keeps one number a sample (the log-sum-exp of its
negatives), the backward pass computes each chunk's cosines again. That is one matrix product more
in three, and saves the memory and the time that moving it takes. The target's logit stays out of
the sum: loss_i = log(1 + exp(lse_i - target_i)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from recognition.backbones import embedding_of
from recognition.classifiers._rows import number_type
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead

# of float32 centers: stays in a CPU's cache, fills a GPU
CHUNK_BYTES = {
    "cpu": 8 << 20,
    "cuda": 128 << 20,
}
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Options:
    """How cosines become logits, and how they are computed.

    chunk: classes at a time. half_matmul: products in bfloat16. sub_centers: centers a class,
    consecutive rows of the weight, of which the nearest counts (Sub-center ArcFace, ECCV 2020).
    filter_above: negatives with a larger cosine are taken for mislabeled and get logit 0
    (inter-class filtering of arcface_torch; 0 turns it off).
    """

    head: MarginHead
    chunk: int
    half_matmul: bool = False
    sub_centers: int = 1
    filter_above: float = 0.0


@dataclass(frozen=True)
class FusedSGD:
    """The centers' SGD step, taken chunk by chunk in the backward pass so that no gradient of their
    size exists.

    As torch.optim.SGD: v <- momentum v + gradient + weight_decay w, w <- w - lr v. velocity: shaped
    as the weight.
    """

    velocity: torch.Tensor
    momentum: float
    weight_decay: float
    lr: float


def make_options(
    head: MarginHead,
    backbone: nn.Module,
    *,
    chunk: int | Literal["auto"],
    matmul: str,
    sub_centers: int,
    filter_above: float,
) -> Options:
    """Options from a configuration's values, checked; "auto" takes a chunk of centers that the
    device works well on."""
    half = number_type("classifier.matmul", matmul) == torch.bfloat16
    if sub_centers < 1 or (isinstance(chunk, int) and chunk < 1):
        raise ValueError(
            f"classifier.sub_centers {sub_centers}, classifier.chunk {chunk}: expected at least 1"
        )
    if not 0 <= filter_above <= 1:
        raise ValueError(
            f"classifier.filter_above {filter_above}: expected a cosine in [0, 1], 0 for none"
        )
    kind = next(backbone.parameters()).device.type
    fitting = max(
        256,
        CHUNK_BYTES.get(kind, CHUNK_BYTES["cuda"]) // (4 * embedding_of(backbone) * sub_centers),
    )
    size = chunk if isinstance(chunk, int) else fitting
    return Options(head, size, half_matmul=half, sub_centers=sub_centers, filter_above=filter_above)


def gather_batch(
    embeddings: torch.Tensor, labels: torch.Tensor, ranks: Ranks, *, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (b,D) and labels (b,) of every rank -> (B,D) in the centers' dtype,
    differentiable, and (B,).

    The gradient that returns to a rank's embeddings carries a factor `world`, so that
    DistributedDataParallel's mean over ranks gives the gradient of the global mean loss.
    """
    return _Gather.apply(embeddings.to(dtype), ranks), ranks.all_gather(labels)


def margin_loss(
    embeddings: torch.Tensor,
    weight: torch.Tensor,
    places: torch.Tensor,
    *,
    options: Options,
    ranks: Ranks,
    training: bool,
    fused: FusedSGD | None = None,
) -> torch.Tensor:
    """Mean margin-softmax loss of the global batch, the same number on every rank. Call it outside
    autocast.

    embeddings (B,D) of all ranks; weight (C_local * sub_centers, D) of this rank; places (B,): each
    sample's class as a row (of sub-centers: a group) of this weight, -1 where another rank holds
    it. With `fused`, weight and velocity are updated by the backward pass and no gradient of the
    weight is made; a loss that is not finite leaves them alone.
    """
    head = options.head
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    units = embeddings / norms.clamp_min(SMALLEST_NORM)[:, None]
    with torch.no_grad():
        cos_t = ranks.all_reduce_sum(_target_cosines(units, weight, places, options.sub_centers))
        if training:
            head.observe(cos_t, norms)
    lse, cos_t = _Softmax.apply(units, weight, cos_t, places, options, fused, ranks)
    losses = F.softplus(lse - head.scale * head.target(cos_t, norms))
    penalty = head.penalty(norms)
    return losses.mean() if penalty is None else losses.mean() + penalty.mean()


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward keeps this rank's rows (every rank computes the same full
    gradient), times world."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks, ctx.count = ranks, len(rows)
        return ranks.all_gather(rows).view(ranks.world * len(rows), -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ranks = ctx.ranks
        return gradient[ranks.rank * ctx.count : (ranks.rank + 1) * ctx.count] * ranks.world, None


def _target_cosines(
    units: torch.Tensor, weight: torch.Tensor, places: torch.Tensor, sub_centers: int
) -> torch.Tensor:
    """Cosine of each sample with its own class (B,), 0 where that class is elsewhere."""
    own = weight.view(-1, sub_centers, weight.shape[1])[places.clamp_min(0)]
    norms = torch.linalg.vector_norm(own, dim=2).clamp_min(SMALLEST_NORM)
    cos = (torch.einsum("bd,bkd->bk", units, own) / norms).amax(1)
    return torch.where(places >= 0, cos, 0.0)


class _Softmax(torch.autograd.Function):
    """(units (B,D), weight, cos_t (B,)) -> (log-sum-exp of the negatives' logits (B,), cos_t), over
    all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        units: torch.Tensor,
        weight: torch.Tensor,
        cos_t: torch.Tensor,
        places: torch.Tensor,
        options: Options,
        fused: FusedSGD | None,
        ranks: Ranks,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inverse = weight.new_empty(len(weight))
        lse = units.new_full((len(units),), -torch.inf)
        for rows in _chunks(len(weight), options):
            torch.linalg.vector_norm(weight[rows], dim=1, out=inverse[rows])
            inverse[rows].clamp_min_(SMALLEST_NORM).reciprocal_()
            cos, _ = _nearest(_cosines(units, weight[rows], inverse[rows], options), options)
            logits = _negatives(cos, cos_t, options) * options.head.scale
            put(logits, places - rows.start // options.sub_centers, -torch.inf)
            lse = torch.logaddexp(lse, torch.logsumexp(logits, 1))
        top = ranks.all_reduce_max(lse)
        lse = top + ranks.all_reduce_sum((lse - top).exp()).log()
        ctx.save_for_backward(units, weight, inverse, cos_t, places, lse)
        ctx.options, ctx.fused, ctx.ranks = options, fused, ranks
        return lse, cos_t.clone()

    @staticmethod
    def backward(
        ctx: Any, lse_gradient: torch.Tensor, cos_t_gradient: torch.Tensor
    ) -> tuple[Any, ...]:
        units, weight, inverse, cos_t, places, lse = ctx.saved_tensors
        options, fused = ctx.options, ctx.fused
        half = options.half_matmul
        if fused is not None and not torch.isfinite(lse).all():
            fused = None
        units_gradient = torch.zeros_like(units)
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _chunks(len(weight), options):
            own, own_inverse = weight[rows], inverse[rows]
            all_cos = _cosines(units, own, own_inverse, options)
            cos, which = _nearest(all_cos, options)
            slope = _negatives_slope(cos, cos_t, lse, options).mul_(lse_gradient[:, None])
            put(slope, places - rows.start // options.sub_centers, cos_t_gradient)
            if which is not None:
                spread = torch.zeros_like(all_cos).view(*slope.shape, -1)
                slope = spread.scatter_(2, which, slope[:, :, None]).flatten(1)
            # d cos_ij / d w_j = (u_i - cos_ij w_j/|w_j|) / |w_j|: a product with the units, and a
            # multiple of w_j.
            along = (slope * all_cos).sum(0).mul_(own_inverse).mul_(own_inverse).neg_()
            slope.mul_(own_inverse)
            units_gradient += matmul(slope, own, half)
            if weight_gradient is not None:
                torch.addcmul(
                    matmul(slope.T, units, half), own, along[:, None], out=weight_gradient[rows]
                )
            elif fused is not None:
                _fused_step(own, fused, rows, slope, units, along, half)
        return (
            ctx.ranks.all_reduce_sum(units_gradient),
            weight_gradient,
            None,
            None,
            None,
            None,
            None,
        )


def _chunks(rows: int, options: Options) -> Iterator[slice]:
    step = options.chunk * options.sub_centers
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def matmul(a: torch.Tensor, b: torch.Tensor, half: bool) -> torch.Tensor:
    """a @ b in the dtype of a; with `half` the inputs are rounded to bfloat16 (on a CPU the product
    too)."""
    if not half:
        return a @ b
    if a.is_cuda:
        return torch.mm(a.to(torch.bfloat16), b.to(torch.bfloat16), out_dtype=torch.float32)
    return (a.to(torch.bfloat16) @ b.to(torch.bfloat16)).to(a.dtype)


def _cosines(
    units: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor, options: Options
) -> torch.Tensor:
    """(B, rows): scaling the product by 1/|w| costs less than normalizing the rows."""
    return matmul(units, rows.T, options.half_matmul).mul_(inverse)


def _nearest(cos: torch.Tensor, options: Options) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of each class's sub-centers the largest cosine (B,c), and which one (B,c,1)."""
    if options.sub_centers == 1:
        return cos, None
    best, which = cos.view(len(cos), -1, options.sub_centers).max(2, keepdim=True)
    return best[:, :, 0], which


def _negatives(cos: torch.Tensor, cos_t: torch.Tensor, options: Options) -> torch.Tensor:
    if options.filter_above > 0:
        cos = torch.where(cos > options.filter_above, 0.0, cos)
    return options.head.negatives(cos, cos_t[:, None])


def _negatives_slope(
    cos: torch.Tensor, cos_t: torch.Tensor, lse: torch.Tensor, options: Options
) -> torch.Tensor:
    """d lse_i / d cos_ij (B,c); the target's own entry is meaningless."""
    scale = options.head.scale
    if not (options.head.changes_negatives or options.filter_above > 0):
        return (cos * scale).sub_(lse[:, None]).exp_().mul_(scale)
    with torch.enable_grad():
        cos = cos.detach().requires_grad_()
        changed = _negatives(cos, cos_t, options)
    softmax = (changed.detach() * scale).sub_(lse[:, None]).exp_().mul_(scale)
    return torch.autograd.grad(changed, cos, softmax)[0]


def put(matrix: torch.Tensor, columns: torch.Tensor, values: torch.Tensor | float) -> None:
    """matrix[i, columns[i]] = values[i] in place, for the columns that the matrix has; no device
    sync."""
    inside = (columns >= 0) & (columns < matrix.shape[1])
    index = columns.clamp(0, matrix.shape[1] - 1)[:, None]
    kept = matrix.gather(1, index)[:, 0]
    matrix.scatter_(1, index, torch.where(inside, values, kept)[:, None])


def _fused_step(
    own: torch.Tensor,
    sgd: FusedSGD,
    rows: slice,
    slope: torch.Tensor,
    units: torch.Tensor,
    along: torch.Tensor,
    half: bool,
) -> None:
    """One chunk's SGD step in place, in two passes over the chunk beside the product."""
    velocity = sgd.velocity[rows]
    step = velocity if velocity.dtype == own.dtype else velocity.to(own.dtype)
    if half:
        step.mul_(sgd.momentum).add_(matmul(slope.T, units, half))
    else:
        torch.addmm(step, slope.T, units, beta=sgd.momentum, out=step)
    step.addcmul_(own, (along + sgd.weight_decay)[:, None])
    own.add_(step, alpha=-sgd.lr)
    if step is not velocity:
        velocity.copy_(step)
