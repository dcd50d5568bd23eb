"""The margin softmax over many classes, one chunk of classes at a time, on one rank or several.

Nothing of size B x C exists. The forward pass keeps one number per sample, the log-sum-exp of its
negatives, and the backward pass computes each chunk's cosines again. That makes four matrix
products out of three, and saves the memory of a B x C matrix and the time to move it.

    loss_i = log(1 + exp(lse_i - target_i)),    lse_i = log sum over j ≠ y_i of exp(s cos_ij)

The target's logit stays out of the sum, so that a small loss keeps its precision.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from data.options import Count
from recognition.backbones import embedding_of
from recognition.classifiers import Sizes
from recognition.classifiers._matmul import MatmulName, matmul, matmul_type
from recognition.classifiers._row_optimizers import FusedSGD, fused_sgd_step
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead

Chunk = Count | Literal["auto"]
# Bytes of float32 centers per chunk: few enough for a CPU's cache, enough to keep a GPU busy.
CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}
SMALLEST_CHUNK = 256  # classes
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class SoftmaxOptions:
    """How cosines become logits, and how they are computed."""

    head: MarginHead
    chunk: int
    """Classes computed at a time."""
    matmul_dtype: torch.dtype = torch.float32
    """Type to which the inputs of every product with the centers are rounded."""
    sub_centers: int = 1
    """Centers per class, consecutive rows of the weight, of which the nearest counts (Sub-center
    ArcFace, ECCV 2020)."""
    filter_above: float = 0.0
    """A negative with a larger cosine is probably a mislabeled image, and gets logit 0 (inter-class
    filtering of arcface_torch). 0 turns this off."""


def softmax_options(
    head: MarginHead,
    backbone: nn.Module,
    *,
    chunk: int | Literal["auto"],
    matmul_dtype: MatmulName,
    precision: str,
    images: int,
    ranks: Ranks,
    sub_centers: int = 1,
    filter_above: float = 0.0,
) -> SoftmaxOptions:
    """SoftmaxOptions from the values of a config.

    precision: its `run.precision`. images: samples per loss, on all ranks. An automatic chunk on a
    GPU also fits into an eighth of the memory that is free now, on every rank.
    """
    device = next(backbone.parameters()).device
    embedding = embedding_of(backbone)
    classes = chunk_size(chunk, device.type, embedding, sub_centers)
    if chunk == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        bytes_per_class = 4 * sub_centers * numbers_per_center(images, embedding)
        classes = min(classes, max(SMALLEST_CHUNK, free // 8 // bytes_per_class))
        if ranks.world > 1:
            classes = -int(ranks.all_reduce_max(torch.tensor(-classes, device=device)))
    return SoftmaxOptions(
        head,
        classes,
        matmul_dtype=matmul_type(matmul_dtype, precision, device.type),
        sub_centers=sub_centers,
        filter_above=filter_above,
    )


def chunk_size(
    chunk: int | Literal["auto"], device: str, embedding: int, sub_centers: int = 1
) -> int:
    """Classes per chunk: `chunk`, or as many as suit the device if that is "auto"."""
    if chunk != "auto":
        return chunk
    return max(
        SMALLEST_CHUNK,
        CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * embedding * sub_centers),
    )


def chunk_memory(options: Mapping[str, Any], sizes: Sizes, *, rows: int, images: int) -> int:
    """Bytes that one chunk needs at most.

    options: those of the classifier. rows: its centers on the rank. images: B, samples per loss.
    """
    sub_centers: int = options.get("sub_centers", 1)
    classes = chunk_size(options["chunk"], sizes.device, sizes.embedding, sub_centers)
    return 4 * min(classes * sub_centers, rows) * numbers_per_center(images, sizes.embedding)


def numbers_per_center(images: int, embedding: int) -> int:
    """Float32 numbers that a chunk needs per center: four (B,c) matrices and two (c,D)."""
    return 4 * images + 2 * embedding


def gather_batch(
    embeddings: torch.Tensor, labels: torch.Tensor, ranks: Ranks, *, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (b,D) and labels (b,) of every rank -> (B,D) in `dtype`, differentiable, and (B,).

    The gradient of a rank's embeddings has a factor `world`, so that DistributedDataParallel's mean
    over ranks gives the gradient of the global mean loss.
    """
    return _Gather.apply(embeddings.to(dtype), ranks), ranks.all_gather(labels)


def margin_loss(
    embeddings: torch.Tensor,
    weight: torch.Tensor,
    places: torch.Tensor,
    *,
    options: SoftmaxOptions,
    ranks: Ranks,
    training: bool,
    fused: FusedSGD | None = None,
) -> torch.Tensor:
    """Mean margin-softmax loss of the global batch, a scalar that is equal on every rank.

    Call it outside autocast. embeddings (B,D): of all ranks. weight (C_local * sub_centers, D):
    this rank's centers. places (B,): the row of each sample's class in the weight, counted in
    groups of sub_centers rows; -1 where another rank holds the class. fused: the backward pass
    updates weight and velocity, and makes no gradient of the weight. A loss that is not finite
    changes neither.
    """
    head = options.head
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    units = embeddings / norms.clamp_min(SMALLEST_NORM)[:, None]

    # Each rank computes the cosines with its own classes, 0 elsewhere. The sum has all targets'.
    with torch.no_grad():
        cos_t = ranks.all_reduce_sum(_target_cosines(units, weight, places, options.sub_centers))
        if training:
            head.update_stats(cos_t, norms)

    # softplus(x) = log(1 + exp(x))
    lse, cos_t = _Softmax.apply(units, weight, cos_t, places, options, fused, ranks)
    losses = F.softplus(lse - head.scale * head.target(cos_t, norms))

    penalty = head.penalty(norms)
    return losses.mean() if penalty is None else losses.mean() + penalty.mean()


class _Gather(torch.autograd.Function):
    """Rows (b,…) of every rank -> (B,…).

    The gradient is equal on all ranks; the backward pass returns this rank's rows of it, times
    world.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks, ctx.count = ranks, len(rows)
        return ranks.all_gather(rows).view(ranks.world * len(rows), -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        begin = ctx.ranks.rank * ctx.count
        return gradient[begin : begin + ctx.count] * ctx.ranks.world, None


def _target_cosines(
    units: torch.Tensor, weight: torch.Tensor, places: torch.Tensor, sub_centers: int
) -> torch.Tensor:
    """Cosine of each sample with its own class (B,), 0 where another rank has that class."""
    own = weight.view(-1, sub_centers, weight.shape[1])[places.clamp_min(0)]
    norms = torch.linalg.vector_norm(own, dim=2).clamp_min(SMALLEST_NORM)
    cos = (torch.einsum("bd,bkd->bk", units, own) / norms).amax(1)
    return torch.where(places >= 0, cos, 0.0)


class _Softmax(torch.autograd.Function):
    """(units (B,D), weight, cos_t (B,)) -> (lse (B,), cos_t).

    lse is the log-sum-exp of the negatives' logits over all ranks. cos_t passes through, so that
    the backward pass, which has the centers, gets its gradient too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        units: torch.Tensor,
        weight: torch.Tensor,
        cos_t: torch.Tensor,
        places: torch.Tensor,
        options: SoftmaxOptions,
        fused: FusedSGD | None,
        ranks: Ranks,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inverse = weight.new_empty(len(weight))
        lse = units.new_full((len(units),), -torch.inf)

        for rows in _chunks(len(weight), options):
            torch.linalg.vector_norm(weight[rows], dim=1, out=inverse[rows])
            inverse[rows].clamp_min_(SMALLEST_NORM).reciprocal_()

            all_cos = _cosines(units, weight[rows], inverse[rows], options)
            cos, _ = _nearest(all_cos, options)
            logits = _negatives(cos, cos_t, options) * options.head.scale

            # A sample's own class is not a negative.
            put(logits, places - rows.start // options.sub_centers, -torch.inf)
            lse = torch.logaddexp(lse, torch.logsumexp(logits, 1))

        # Now the log-sum-exp over the ranks. Subtracting their maximum keeps exp in range.
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
        if fused is not None:
            # A batch whose loss is not finite must not spoil the centers. It becomes one with
            # slopes of 0, for which the fused step changes nothing.
            inputs = (lse, lse_gradient, cos_t_gradient)
            taken = torch.stack([tensor.isfinite().all() for tensor in inputs]).all()
            lse = torch.where(taken, lse, torch.inf)
            units, cos_t, lse_gradient, cos_t_gradient = (
                torch.where(taken, tensor, 0.0)
                for tensor in (units, cos_t, lse_gradient, cos_t_gradient)
            )
        units_gradient = torch.zeros_like(units)
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None

        for rows in _chunks(len(weight), options):
            own, own_inverse = weight[rows], inverse[rows]
            all_cos = _cosines(units, own, own_inverse, options)
            cos, which = _nearest(all_cos, options)

            # d loss / d cos_ij: the softmax at the negatives, the head's slope at the target.
            # With sub-centers only the nearest one of a class has a slope.
            slope = _negatives_slope(cos, cos_t, lse, options).mul_(lse_gradient[:, None])
            put(slope, places - rows.start // options.sub_centers, cos_t_gradient)
            if which is not None:
                spread = torch.zeros_like(all_cos).view(*slope.shape, -1)
                slope = spread.scatter_(2, which, slope[:, :, None]).flatten(1)

            # d cos_ij / d w_j = (u_i - cos_ij w_j/|w_j|) / |w_j|. Summed over i, it is a product
            # with the units plus `along` times w_j.
            along = (slope * all_cos).sum(0).mul_(own_inverse).mul_(own_inverse).neg_()
            slope.mul_(own_inverse)

            # This must come before the fused step, which moves the centers.
            units_gradient += matmul(slope, own, options.matmul_dtype)

            if weight_gradient is not None:
                product = matmul(slope.T, units, options.matmul_dtype)
                torch.addcmul(product, own, along[:, None], out=weight_gradient[rows])
            elif fused is not None:
                fused_sgd_step(own, fused, taken, rows, slope, units, along, options.matmul_dtype)

        # One gradient per argument of forward. The last five get none.
        return ctx.ranks.all_reduce_sum(units_gradient), weight_gradient, *[None] * 5


def _chunks(rows: int, options: SoftmaxOptions) -> Iterator[slice]:
    step = options.chunk * options.sub_centers
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _cosines(
    units: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor, options: SoftmaxOptions
) -> torch.Tensor:
    """Cosines (B,c) of units (B,D) and centers (c,D), whose inverse lengths are `inverse` (c,).

    Scaling the product costs less than normalizing the centers.
    """
    return matmul(units, rows.T, options.matmul_dtype).mul_(inverse)


def _nearest(
    cos: torch.Tensor, options: SoftmaxOptions
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The largest cosine of each class's sub-centers (B,c), and its index (B,c,1)."""
    if options.sub_centers == 1:
        return cos, None
    best, which = cos.view(len(cos), -1, options.sub_centers).max(2, keepdim=True)
    return best[:, :, 0], which


def _negatives(cos: torch.Tensor, cos_t: torch.Tensor, options: SoftmaxOptions) -> torch.Tensor:
    if options.filter_above > 0:
        cos = torch.where(cos > options.filter_above, 0.0, cos)
    return options.head.negatives(cos, cos_t[:, None])


def _negatives_slope(
    cos: torch.Tensor, cos_t: torch.Tensor, lse: torch.Tensor, options: SoftmaxOptions
) -> torch.Tensor:
    """d lse_i / d cos_ij (B,c); the entry of the sample's own class is meaningless."""
    scale = options.head.scale

    # Where the logit is scale * cos, the slope is the softmax times the scale.
    if not (options.head.changes_negatives or options.filter_above > 0):
        return (cos * scale).sub_(lse[:, None]).exp_().mul_(scale)

    # Otherwise autograd adds the slope of what the head makes of a cosine.
    with torch.enable_grad():
        cos = cos.detach().requires_grad_()
        changed = _negatives(cos, cos_t, options)
    softmax = (changed.detach() * scale).sub_(lse[:, None]).exp_().mul_(scale)
    return torch.autograd.grad(changed, cos, softmax)[0]


def put(matrix: torch.Tensor, columns: torch.Tensor, values: torch.Tensor | float) -> None:
    """matrix[i, columns[i]] = values[i] in place, for those columns that the matrix has.

    It does not wait for the device.
    """
    inside = (columns >= 0) & (columns < matrix.shape[1])
    index = columns.clamp(0, matrix.shape[1] - 1)[:, None]
    kept = matrix.gather(1, index)[:, 0]
    matrix.scatter_(1, index, torch.where(inside, values, kept)[:, None])
