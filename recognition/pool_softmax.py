"""The columns of a class pool that a batch leaves alone, as the batch's probes see them: a chunk of columns at a time.

Columns carry no gradient and two softmaxes of a pass share them, so this is not recognition/chunked.py: one sweep with
a running maximum gives the log-sum-exp and its gradient (the softmax's mean column), two products in place of the four of
trained centres. Nothing of size B x S exists, and backward does not look at the columns, which may have changed by then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from recognition.chunked import matmul
from recognition.margin import MarginHead


class Negatives(NamedTuple):
    """What B probes see. lse (B,): log-sum-exp of the negatives' logits, -inf without any, differentiable.

    hardest, hardest_cos (B,k): columns of the largest cosines, and those, -inf where fewer columns are open; constant.
    positive_sum (B,): sum of max(cos, 0), differentiable, zeros unless asked for.
    """

    lse: torch.Tensor
    hardest: torch.Tensor
    hardest_cos: torch.Tensor
    positive_sum: torch.Tensor


def shared_negatives(
    units: torch.Tensor,
    columns: torch.Tensor,
    *,
    is_open: torch.Tensor,
    places: torch.Tensor,
    cos_t: torch.Tensor,
    head: MarginHead,
    chunk: int,
    half_matmul: bool,
    hardest: int,
    positive_sum: bool,
) -> Negatives:
    """units (B,D) and columns (S,D) float32 of length 1; is_open (S,) bool: columns that count; places (B,): a probe's own
    column, no negative of it, or -1; cos_t (B,): for heads that change negatives. hardest: k. positive_sum: whether to
    compute it, at the price of one product more.
    """
    return Negatives(
        *_Sweep.apply(units, columns, is_open, places, cos_t, head, chunk, half_matmul, hardest, positive_sum)
    )


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        units: torch.Tensor,
        columns: torch.Tensor,
        is_open: torch.Tensor,
        places: torch.Tensor,
        cos_t: torch.Tensor,
        head: MarginHead,
        chunk: int,
        half: bool,
        hardest: int,
        positive_sum: bool,
    ) -> tuple[torch.Tensor, ...]:
        bias = torch.where(is_open, 0.0, -torch.inf)
        top = units.new_full((len(units),), -head.scale)  # finite, so that closed columns alone make no NaN
        total, positive = torch.zeros_like(top), torch.zeros_like(top)
        mean, direction = torch.zeros_like(units), torch.zeros_like(units)
        best = units.new_empty(len(units), 0)
        where = places.new_empty(len(units), 0)
        for start in range(0, len(columns), chunk):
            own = columns[start : start + chunk]
            closed = bias[start : start + chunk]
            cos = matmul(units, own.T, half)
            changed, slope = _negatives(head, cos, cos_t)
            logits = torch.add(closed, changed, alpha=head.scale)
            if hardest:
                reach = logits if slope is None else cos + closed
                found, index = reach.topk(min(hardest, len(own)), 1)
                kept = torch.cat([best, found], 1).topk(min(hardest, best.shape[1] + found.shape[1]), 1)
                best, where = kept.values, torch.cat([where, index + start], 1).gather(1, kept.indices)
            if positive_sum:
                cos.add_(closed).clamp_(min=0)
                positive += cos.sum(1)
                direction += matmul((cos > 0).to(cos.dtype), own, half)
            _close(logits, places - start)
            higher = torch.maximum(top, logits.amax(1))
            logits.sub_(higher[:, None]).exp_()
            fade = (top - higher).exp()
            total.mul_(fade).add_(logits.sum(1))
            if slope is not None:
                logits.mul_(slope)
            mean.mul_(fade[:, None]).add_(matmul(logits, own, half))
            top = higher
        mean.mul_(head.scale / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None])
        if hardest and not head.changes_negatives:
            best = best / head.scale
        ctx.save_for_backward(mean, direction)
        ctx.mark_non_differentiable(where, best)
        return top + total.log(), where, best, positive

    @staticmethod
    def backward(
        ctx: Any, lse: torch.Tensor, where: torch.Tensor, best: torch.Tensor, positive: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        mean, direction = ctx.saved_tensors
        return (mean * lse[:, None]).addcmul_(direction, positive[:, None]), *[None] * 9


def _negatives(head: MarginHead, cos: torch.Tensor, cos_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cosines as the head lets them count, and their slope in cos where it is not 1."""
    if not head.changes_negatives:
        return cos, None
    with torch.enable_grad():
        cos = cos.detach().requires_grad_()
        changed = head.negatives(cos, cos_t[:, None])
    return changed.detach(), torch.autograd.grad(changed.sum(), cos)[0]


def _close(logits: torch.Tensor, places: torch.Tensor) -> None:
    """logits[i, places[i]] = -inf in place, for the places that the chunk has; no device sync."""
    inside = (places >= 0) & (places < logits.shape[1])
    index = places.clamp(0, logits.shape[1] - 1)[:, None]
    logits.scatter_(1, index, torch.where(inside[:, None], -torch.inf, logits.gather(1, index)))
