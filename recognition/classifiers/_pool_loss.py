"""F²C's loss of a batch of probes against the class pool (arXiv 2105.10375, section 3.3).

Where the paper and its released code differ, this is the loss of the code.

A batch of gallery samples touches some columns of the pool. The loss compares the probes with the
pool as it will be afterwards, but does not change the pool. It therefore treats two kinds of
columns apart: those left alone, which it sweeps once, and those touched, each of which is one row
of features from the plan.
"""

import torch
from torch.nn import functional as F

from recognition.classifiers._gallery import of_all_ranks
from recognition.classifiers._margin_softmax import SMALLEST_NORM, SoftmaxOptions, put
from recognition.classifiers._pool import ClassPool, Plan
from recognition.classifiers._sweep import NO_LOGIT, Swept, sweep
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead


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
    *all_cos_t, all_norms, all_inside = of_all_ranks(seen, ranks).unbind(1)
    if training:
        _update_stats(head, all_cos_t[0].detach(), all_norms.detach(), all_inside.detach())

    # The columns left alone: one sweep is enough for both W unless the negatives depend on cos_iyk.
    def leave_out(logits: torch.Tensor, start: int) -> None:
        put(logits, places - start, -torch.inf)

    sweeps = [
        sweep(
            units,
            columns,
            cos,
            is_open=is_open,
            leave_out=leave_out,
            options=options,
            hardest=hardest,
        )
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
        logits = torch.where(plan.last & ~owner, logits, NO_LOGIT)

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


def _update_stats(
    head: MarginHead, cos_t: torch.Tensor, norms: torch.Tensor, inside: torch.Tensor
) -> None:
    """Give the head the cosines and norms of all ranks' probes.

    A probe whose identity has no column gets the mean cosine of the other probes.
    """
    mean = (cos_t * inside).sum() / inside.sum().clamp_min(1)
    head.update_stats(torch.where(inside > 0, cos_t, mean), norms)


def _pushed_away(
    units: torch.Tensor, columns: torch.Tensor, swept: Swept, touched: torch.Tensor, hardest: int
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
