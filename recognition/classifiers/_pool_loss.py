"""F²C's loss of a batch of probes against the class pool (arXiv 2105.10375, section 3.3).

Where the paper and its released code differ, this is the loss of the code.

A batch of gallery samples touches some columns of the pool. The loss compares the probes with the
pool as it will be afterwards, but does not change the pool. It therefore treats two kinds of
columns apart: those left alone, which it sweeps once, and those touched, each of which is one row
of features from the plan.

Columns get no gradient. Therefore one sweep with a running maximum gives both the log-sum-exp and
its gradient, which is the softmax's mean column. It needs two matrix products, where trained
centers need four (_margin_softmax.py). Nothing of size B x S exists. The backward pass does not use
the columns, which may have changed by then.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from recognition.classifiers._margin_softmax import SMALLEST_NORM, SoftmaxOptions, put
from recognition.classifiers._matmul import matmul
from recognition.classifiers._pool import ClassPool, Plan
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead

# A logit that adds nothing to a softmax. Unlike -inf it has a gradient even if it is the only one.
_NO_LOGIT = -1e4


def pool_loss(
    probes: torch.Tensor,
    labels: torch.Tensor,
    pool: ClassPool,
    plan: Plan,
    features: torch.Tensor,
    *,
    options: SoftmaxOptions,
    hardest: int,
    ranks: Ranks,
    training: bool,
) -> torch.Tensor:
    """This rank's share of the loss of all ranks' probes: the sum over ranks is the loss.

        L  =  1/|I|     sum over i in I, k in {1, 2} of  log(1 + exp(lse_ik - s target(cos_iyk)))
           +  1/(|O| h) sum over i in O, k in {1, 2}, j in H_ik of  max(cos_ijk, 0)

    cos_ijk: cosine of probe i and column j of W_k. W_1 has slot 0 of every column. W_2 has slot 1
    of the columns in R, those that the batch gave a second feature, and slot 0 of the others.
    y: the column of the probe's own identity. I: the probes that have one after the plan.
    O: all other probes. lse_ik = log sum over j ≠ y of exp(s negatives(cos_ijk)).
    H_ik: the h = `hardest` columns with the largest cosines, as in the code; `hardest` 0 stands for
    all columns, as in the paper's text. A head's penalty is added to each term of the first sum.

    probes (B,D), not normalized, and labels (B,) are this rank's. plan and features (G,D) are
    those of the gallery samples of all ranks.
    """
    head = options.head
    norms = torch.linalg.vector_norm(probes, dim=1)
    units = probes / norms.clamp_min(SMALLEST_NORM)[:, None]

    # The column of each probe's own identity: one that the plan touches (then `row` is the sample
    # that says what it will hold), one that it leaves alone (`places`), or none.
    owner = (labels[:, None] == plan.labels) & plan.last
    touched, row = owner.any(1), owner.int().argmax(1)
    is_open = pool.untouched(plan)
    before = pool.columns[labels].long()
    places = torch.where(~touched & (before >= 0) & is_open[before.clamp_min(0)], before, -1)
    inside = touched | (places >= 0)

    # cos_iyk for k = 1, 2. In a touched column the last sample fills one slot, and the other
    # feature lies beside it; a column left alone is equal in both, as it is not in R.
    columns = pool.features[0]
    rows, kept = (features, pool.other_features(plan, features)), columns[places.clamp_min(0)]
    last_in_slot_0 = plan.cursors == 1
    own = ((units * torch.where(touched[:, None], r[row], kept)).sum(1) for r in rows)
    cos_t = _by_slot(last_in_slot_0[row], *own)

    # The head computes statistics and random draws over the probes of all ranks.
    mine = slice(ranks.rank * len(probes), (ranks.rank + 1) * len(probes))
    seen = torch.stack([*cos_t, norms, inside.to(norms.dtype)], 1)
    *all_cos_t, all_norms, all_inside = _of_all_ranks(seen, ranks).unbind(1)
    if training:
        _update_stats(head, all_cos_t[0].detach(), all_norms.detach(), all_inside.detach())

    # The columns left alone: one sweep is enough for both W unless the negatives depend on cos_iyk.
    sweeps = [
        _Swept(*_Sweep.apply(units, columns, is_open, places, cos.detach(), options, hardest))
        for cos in (cos_t if head.changes_negatives else cos_t[:1])
    ]

    cosines = _by_slot(last_in_slot_0, *(units @ r.T for r in rows))
    margin = outside = probes.new_zeros(())
    for cos, cos_own, all_own, swept in zip(
        cosines, cos_t, all_cos_t, (sweeps[0], sweeps[-1]), strict=True
    ):
        # The touched columns' logits: one per column, at its last sample. The probe's own column
        # is left out.
        logits = head.scale * head.negatives(cos, cos_own.detach()[:, None])
        logits = torch.where(plan.last & ~owner, logits, _NO_LOGIT)

        # First sum: the margin softmax of the probes that have a column.
        lse = torch.logsumexp(torch.cat([swept.lse[:, None], logits], 1), 1)
        losses = F.softplus(lse - head.scale * head.target(all_own, all_norms)[mine])
        penalty = head.penalty(norms)
        losses = losses if penalty is None else losses + penalty
        margin = margin + torch.where(inside, losses, 0.0).sum()

        # Second sum: the cosines that push the other probes away.
        cos = torch.where(plan.last, cos, -torch.inf)
        pushed = _pushed_away(units, columns, swept, cos, hardest)
        outside = outside + torch.where(inside, 0.0, pushed).sum()

    # |I| and |O| h over all ranks. h is smaller where fewer columns hold an identity.
    filled = is_open.sum() + plan.last.sum()
    pushing = filled.clamp(max=hardest) if hardest else filled
    counts = torch.stack([inside.sum(), (~inside).sum() * pushing])
    terms = ranks.all_reduce_sum(counts).clamp_min(1)
    return margin / terms[0] + outside / terms[1]


def _by_slot(
    last_in_slot_0: torch.Tensor, last: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(slot 0, slot 1) from the values of the last sample's slot and of the other slot."""
    return torch.where(last_in_slot_0, last, other), torch.where(last_in_slot_0, other, last)


def _of_all_ranks(own: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """(B,n) of each rank -> (world·B,n) in rank order, differentiable in this rank's rows."""
    rows = list(ranks.all_gather(own).chunk(ranks.world))
    rows[ranks.rank] = own
    return torch.cat(rows)


def _update_stats(
    head: MarginHead, cos_t: torch.Tensor, norms: torch.Tensor, inside: torch.Tensor
) -> None:
    """Give the head the cosines and norms of all ranks' probes.

    A probe whose identity has no column gets the mean cosine of the other probes.
    """
    mean = (cos_t * inside).sum() / inside.sum().clamp_min(1)
    head.update_stats(torch.where(inside > 0, cos_t, mean), norms)


def _pushed_away(
    units: torch.Tensor, columns: torch.Tensor, swept: "_Swept", touched: torch.Tensor, hardest: int
) -> torch.Tensor:
    """Sum of max(cos, 0) over the hardest columns, or over all of them (B,).

    touched (B,G): cosines with the touched columns, -inf at samples that stand for no column.
    """
    if not hardest:
        return swept.positive + touched.clamp_min(0).sum(1)

    # The hardest columns of all are among the hardest ones left alone and the touched ones. The
    # cosines of those left alone are computed again, with a gradient.
    cos = torch.einsum("bd,bkd->bk", units, columns[swept.hardest])
    cos = torch.cat([torch.where(swept.found, cos, -torch.inf), touched], 1)
    return cos.topk(min(hardest, cos.shape[1]), 1).values.clamp_min(0).sum(1)


class _Swept(NamedTuple):
    """The result of a sweep of B probes over the columns left alone."""

    lse: torch.Tensor
    """(B,): log-sum-exp of the negatives' logits, differentiable."""
    positive: torch.Tensor
    """(B,): sum of max(cos, 0), differentiable. 0 if only the hardest columns were asked for."""
    hardest: torch.Tensor
    """(B,k): the columns of the largest cosines."""
    found: torch.Tensor
    """(B,k) bool: False in the last entries of `hardest` if fewer than k columns are left alone."""


class _Sweep(torch.autograd.Function):
    """units (B,D), columns (S,D), is_open (S,), places (B,), cos_t (B,) -> _Swept.

    is_open (bool): columns left alone that hold an identity. places: the probe's own column, or -1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        units: torch.Tensor,
        columns: torch.Tensor,
        is_open: torch.Tensor,
        places: torch.Tensor,
        cos_t: torch.Tensor,
        options: SoftmaxOptions,
        hardest: int,
    ) -> tuple[torch.Tensor, ...]:
        head = options.head
        bias = torch.where(is_open, 0.0, -torch.inf).to(units.dtype)

        # After each chunk, with z_j the logits so far: top = max z_j, total = sum of
        # exp(z_j - top), mean = sum of exp(z_j - top) times the slope and column j.
        # top starts at a finite number, so that closed columns alone make no NaN.
        top = units.new_full((len(units),), -head.scale)
        total, positive = torch.zeros_like(top), torch.zeros_like(top)
        mean, direction = torch.zeros_like(units), torch.zeros_like(units)
        best, where = units.new_empty(len(units), 0), places.new_empty(len(units), 0)

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
            else:
                # The sum of max(cos, 0), and its gradient: the sum of the columns with cos > 0.
                cos = (cos + closed).clamp_min_(0)
                positive += cos.sum(1)
                direction += matmul((cos > 0).to(cos.dtype), own, options.matmul_dtype)

            # A probe's own column is not a negative. Earlier sums fade as the maximum rises.
            put(logits, places - start, -torch.inf)
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
    """The cosines that enter the softmax, and their slope in cos, None where it is 1 everywhere."""
    if not head.changes_negatives:
        return cos, None
    with torch.enable_grad():
        cos = cos.detach().requires_grad_()
        changed = head.negatives(cos, cos_t[:, None])
        slope = torch.autograd.grad(changed.sum(), cos)[0]
    return changed.detach(), slope
