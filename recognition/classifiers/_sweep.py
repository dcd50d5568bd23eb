"""A margin softmax over columns without gradient: features of a gallery network, chunk by chunk.

As columns get no gradient, one sweep with a running maximum gives both the log-sum-exp and its
gradient, which is the softmax's mean column. It needs two matrix products, where trained centers
need four (_margin_softmax.py). Nothing of size B x S exists. The backward pass does not use the
columns, which may have changed by then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from recognition.classifiers._margin_softmax import SoftmaxOptions
from recognition.classifiers._matmul import matmul
from recognition.heads._margin import MarginHead

# A logit that adds nothing to a softmax. Unlike -inf it has a gradient even if it is the only one.
NO_LOGIT = -1e4


class Swept(NamedTuple):
    """The result of a sweep of B probes over the open columns."""

    lse: torch.Tensor
    """(B,): log-sum-exp of the negatives' logits, differentiable."""
    positive: torch.Tensor
    """(B,): sum of max(cos, 0), differentiable. 0 unless all columns were asked for."""
    hardest: torch.Tensor
    """(B,k): the columns of the largest cosines, k = 0 unless these were asked for."""
    found: torch.Tensor
    """(B,k) bool: False in the last entries of `hardest` if fewer than k columns are open."""


def sweep(
    units: torch.Tensor,
    columns: torch.Tensor,
    cos_t: torch.Tensor,
    *,
    is_open: torch.Tensor,
    leave_out: Callable[[torch.Tensor, int], None],
    options: SoftmaxOptions,
    hardest: int | None = None,
) -> Swept:
    """Compare probes `units` (B,D), of length 1, with the open ones of `columns` (S,D).

    cos_t (B,): each probe's cosine with its own class. is_open (S,) bool. leave_out(logits, start)
    sets those logits (B,c) to -inf whose columns, counted from `start`, are the probe's own.
    hardest: how many of the largest cosines are asked for; 0 asks for the sum of all positive ones,
    and None for neither.
    """
    given = units, columns, is_open, cos_t.detach(), leave_out, options, hardest
    return Swept(*_Sweep.apply(*given))


class _Sweep(torch.autograd.Function):
    """`sweep`, with a gradient in the units."""

    @staticmethod
    def forward(
        ctx: Any,
        units: torch.Tensor,
        columns: torch.Tensor,
        is_open: torch.Tensor,
        cos_t: torch.Tensor,
        leave_out: Callable[[torch.Tensor, int], None],
        options: SoftmaxOptions,
        hardest: int | None,
    ) -> tuple[torch.Tensor, ...]:
        head = options.head
        bias = torch.where(is_open, 0.0, -torch.inf).to(units.dtype)

        # After each chunk, with z_j the logits so far: top = max z_j, total = sum of
        # exp(z_j - top), mean = sum of exp(z_j - top) times the slope and column j.
        # top starts at a finite number, so that closed columns alone make no NaN.
        top = units.new_full((len(units),), -head.scale)
        total, positive = torch.zeros_like(top), torch.zeros_like(top)
        mean, direction = torch.zeros_like(units), torch.zeros_like(units)
        best = units.new_empty(len(units), 0)
        where = torch.empty_like(best, dtype=torch.int64)

        for start in range(0, len(columns), options.chunk):
            own = columns[start : start + options.chunk]
            closed = bias[start : start + options.chunk]
            cos = matmul(units, own.T, options.matmul_dtype)
            changed, slope = _negatives(head, cos, cos_t)
            logits = torch.add(closed, changed, alpha=head.scale)

            if hardest:
                # The largest cosines of this chunk, then of these and the best so far. Logits have
                # the same order and exist already, unless the head changed them.
                ranked = cos + closed if head.changes_negatives else logits
                found, index = ranked.topk(min(hardest, len(own)), 1)
                best, where = torch.cat([best, found], 1), torch.cat([where, index + start], 1)
                best, index = best.topk(min(hardest, best.shape[1]), 1)
                where = where.gather(1, index)
            elif hardest is not None:
                # The sum of max(cos, 0), and its gradient: the sum of the columns with cos > 0.
                cos = (cos + closed).clamp_min_(0)
                positive += cos.sum(1)
                direction += matmul((cos > 0).to(cos.dtype), own, options.matmul_dtype)

            # A probe's own column is not a negative. Earlier sums fade as the maximum rises.
            leave_out(logits, start)
            higher = torch.maximum(top, logits.amax(1))
            logits.sub_(higher[:, None]).exp_()
            fade = (top - higher).exp()
            total.mul_(fade).add_(logits.sum(1))
            weights = logits if slope is None else logits.mul_(slope)
            mean.mul_(fade[:, None]).add_(matmul(weights, own, options.matmul_dtype))
            top = higher

        # d lse / d units is the softmax's mean column, times the scale.
        mean.div_(total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]).mul_(head.scale)

        found = best > -torch.inf
        ctx.save_for_backward(mean, direction)
        ctx.mark_non_differentiable(where, found)
        return torch.where(total > 0, top + total.log(), NO_LOGIT), positive, where, found

    @staticmethod
    def backward(
        ctx: Any, lse: torch.Tensor, positive: torch.Tensor, *_: torch.Tensor
    ) -> tuple[Any, ...]:
        mean, direction = ctx.saved_tensors
        return (mean * lse[:, None]).addcmul_(direction, positive[:, None]), *[None] * 6


def _negatives(
    head: MarginHead, cos: torch.Tensor, cos_t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The cosines that enter the softmax, and their slope in cos, None where it is 1 everywhere."""
    if not head.changes_negatives:
        return cos, None
    with torch.enable_grad():
        cos = cos.detach().requires_grad_()
        changed = head.negatives(cos, cos_t[:, None])
        slope = torch.autograd.grad(changed.sum(), cos)[0]
    return changed.detach(), slope
