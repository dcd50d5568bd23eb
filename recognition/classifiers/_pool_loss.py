"""F²C's loss of a batch of probes against the class pool (arXiv 2105.10375, section 3.3; where they
differ its code).

W1 holds slot 0 of every column, W2 slot 1 of the columns in R and slot 0 elsewhere. They differ,
and differ from the pool as it stands, in the columns that the batch's gallery samples touch, so a
pass works on two parts: the columns left alone, swept once for both, and one row for each touched
column, as it will be. The pool itself is only read.

Columns carry no gradient, so this is not recognition/classifiers/_margin_softmax.py: one sweep with
a running maximum gives the log-sum-exp and its gradient (the softmax's mean column), two matrix
products in place of the four of trained centers. Nothing of size B x S exists, and the backward
pass does not look at the columns, which may have changed by then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from recognition.classifiers._margin_softmax import SMALLEST_NORM, Options, matmul, put
from recognition.classifiers._pool import ClassPool, Plan
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead

# adds nothing to a softmax, and unlike -inf has a gradient where there is nothing else
_NO_LOGIT = -1e4


def pool_loss(
    probes: torch.Tensor,
    labels: torch.Tensor,
    pool: ClassPool,
    plan: Plan,
    features: torch.Tensor,
    *,
    options: Options,
    hardest: int,
    ranks: Ranks,
    training: bool,
) -> torch.Tensor:
    """This rank's part of the loss of all ranks' probes: the parts add up to it.

    probes (B,D) of any length and labels (B,) of this rank; plan and features (G,D): what the
    gallery samples of all ranks do to the pool. In the pool afterwards: mean over such probes of
    the margin softmax against W1 plus that against W2; not in it: mean over such probes and their
    `hardest` columns (as published; 0: all columns, the paper's text) of max(cos, 0), again for W1
    plus W2.
    """
    head = options.head
    norms = torch.linalg.vector_norm(probes, dim=1)
    units = probes / norms.clamp_min(SMALLEST_NORM)[:, None]
    owner = (
        labels[:, None] == plan.labels
    ) & plan.last  # (B,G): the touched column of a probe's own identity
    touched, row = owner.any(1), owner.int().argmax(1)
    is_open = pool.untouched(plan)
    before = pool.columns[labels].long()
    places = torch.where(~touched & (before >= 0) & is_open[before.clamp_min(0)], before, -1)
    inside = touched | (places >= 0)
    columns = pool.features[0]
    rows, kept = (features, pool.other_features(plan, features)), columns[places.clamp_min(0)]
    slot_0 = plan.cursors == 1  # where the last sample's feature is
    cos_t = _by_slot(
        slot_0[row], *((units * torch.where(touched[:, None], r[row], kept)).sum(1) for r in rows)
    )
    begin = ranks.rank * len(probes)
    mine = slice(begin, begin + len(probes))
    everyone = _of_all_ranks(torch.stack([*cos_t, norms, inside.to(norms.dtype)], 1), ranks).unbind(
        1
    )
    if training:
        _observe(head, *(column.detach() for column in (everyone[0], *everyone[2:])))

    sweeps = [
        _Swept(*_Sweep.apply(units, columns, is_open, places, cos.detach(), options, hardest))
        for cos in (cos_t if head.changes_negatives else cos_t[:1])
    ]
    cosines = _by_slot(slot_0, *(units @ r.T for r in rows))
    margin = outside = probes.new_zeros(())
    for cos, cos_own, all_own, swept in zip(
        cosines, cos_t, everyone[:2], (sweeps[0], sweeps[-1]), strict=True
    ):
        logits = head.scale * head.negatives(cos, cos_own.detach()[:, None])
        logits = torch.where(plan.last & ~owner, logits, _NO_LOGIT)
        lse = torch.logsumexp(torch.cat([swept.lse[:, None], logits], 1), 1)
        losses = F.softplus(lse - head.scale * head.target(all_own, everyone[2])[mine])
        penalty = head.penalty(norms)
        losses = losses if penalty is None else losses + penalty
        margin = margin + torch.where(inside, losses, 0.0).sum()
        pushed = _pushed_away(
            units, columns, swept, torch.where(plan.last, cos, -torch.inf), hardest
        )
        outside = outside + torch.where(inside, 0.0, pushed).sum()
    filled = is_open.sum() + plan.last.sum()
    pushing = filled.clamp(max=hardest) if hardest else filled
    counts = ranks.all_reduce_sum(torch.stack([inside.sum(), (~inside).sum() * pushing])).clamp_min(
        1
    )
    return margin / counts[0] + outside / counts[1]


def _by_slot(
    slot_0: torch.Tensor, newest: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slot 0's and slot 1's, given those of the slot written last and of the other, and whether the
    last is slot 0."""
    return torch.where(slot_0, newest, other), torch.where(slot_0, other, newest)


def _of_all_ranks(own: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """(B,n) of each rank -> (world·B,n) in rank order, differentiable in the own rows."""
    parts = list(ranks.all_gather(own).chunk(ranks.world))
    parts[ranks.rank] = own
    return torch.cat(parts)


def _observe(
    head: MarginHead, cos_t: torch.Tensor, norms: torch.Tensor, inside: torch.Tensor
) -> None:
    """Shows the head all ranks' probes; one without a column of its own counts as the mean of those
    that have one."""
    mean = (cos_t * inside).sum() / inside.sum().clamp_min(1)
    head.observe(torch.where(inside > 0, cos_t, mean), norms)


def _pushed_away(
    units: torch.Tensor, columns: torch.Tensor, swept: _Swept, touched: torch.Tensor, hardest: int
) -> torch.Tensor:
    """Sum of max(cos, 0) over the hardest columns, or all of them (B,). touched (B,G): cosines,
    -inf for no column."""
    if not hardest:
        return swept.positive + touched.clamp_min(0).sum(1)
    cos = torch.einsum("bd,bkd->bk", units, columns[swept.hardest])
    cos = torch.cat([torch.where(swept.found, cos, -torch.inf), touched], 1)
    return cos.topk(min(hardest, cos.shape[1]), 1).values.clamp_min(0).sum(1)


class _Swept(NamedTuple):
    """What B probes see in the columns left alone. lse (B,): log-sum-exp of the negatives' logits.

    hardest (B,k): columns of the largest cosines, and found (B,k): whether there are so many.
    positive (B,): sum of max(cos, 0) over all of them where no `hardest` was asked for. lse and
    positive are differentiable.
    """

    lse: torch.Tensor
    positive: torch.Tensor
    hardest: torch.Tensor
    found: torch.Tensor


class _Sweep(torch.autograd.Function):
    """units (B,D), columns (S,D), is_open (S,) bool, places (B,) own column or -1, cos_t (B,) ->
    _Swept."""

    @staticmethod
    def forward(
        ctx: Any,
        units: torch.Tensor,
        columns: torch.Tensor,
        is_open: torch.Tensor,
        places: torch.Tensor,
        cos_t: torch.Tensor,
        options: Options,
        hardest: int,
    ) -> tuple[torch.Tensor, ...]:
        head, half = options.head, options.half_matmul
        bias = torch.where(is_open, 0.0, -torch.inf).to(units.dtype)
        # finite, so that closed columns alone make no NaN
        top = units.new_full((len(units),), -head.scale)
        total, positive = torch.zeros_like(top), torch.zeros_like(top)
        mean, direction = torch.zeros_like(units), torch.zeros_like(units)
        best, where = units.new_empty(len(units), 0), places.new_empty(len(units), 0)
        for start in range(0, len(columns), options.chunk):
            own, closed = (
                columns[start : start + options.chunk],
                bias[start : start + options.chunk],
            )
            cos = matmul(units, own.T, half)
            changed, slope = _negatives(head, cos, cos_t)
            logits = torch.add(closed, changed, alpha=head.scale)
            if hardest:
                found, index = (cos + closed if head.changes_negatives else logits).topk(
                    min(hardest, len(own)), 1
                )
                best, where = torch.cat([best, found], 1), torch.cat([where, index + start], 1)
                best, index = best.topk(min(hardest, best.shape[1]), 1)
                where = where.gather(1, index)
            else:
                cos = (cos + closed).clamp_min_(0)
                positive += cos.sum(1)
                direction += matmul((cos > 0).to(cos.dtype), own, half)
            put(logits, places - start, -torch.inf)
            higher = torch.maximum(top, logits.amax(1))
            logits.sub_(higher[:, None]).exp_()
            fade = (top - higher).exp()
            total.mul_(fade).add_(logits.sum(1))
            weights = logits if slope is None else logits.mul_(slope)
            mean.mul_(fade[:, None]).add_(matmul(weights, own, half))
            top = higher
        mean.div_(total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]).mul_(head.scale)
        found = best > -torch.inf
        ctx.save_for_backward(mean, direction)
        ctx.mark_non_differentiable(where, found)
        return torch.where(total > 0, top + total.log(), _NO_LOGIT), positive, where, found

    @staticmethod
    def backward(
        ctx: Any, lse: torch.Tensor, positive: torch.Tensor, *_: torch.Tensor
    ) -> tuple[Any, ...]:
        mean, direction = ctx.saved_tensors
        return (mean * lse[:, None]).addcmul_(direction, positive[:, None]), *[None] * 6


def _negatives(
    head: MarginHead, cos: torch.Tensor, cos_t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cosines as the head lets them count, and their slope in cos where it is not 1 everywhere."""
    if not head.changes_negatives:
        return cos, None
    with torch.enable_grad():
        cos = cos.detach().requires_grad_()
        changed = head.negatives(cos, cos_t[:, None])
        slope = torch.autograd.grad(changed.sum(), cos)[0]
    return changed.detach(), slope
