"""SST's loss of a batch of probes against the gallery queue (arXiv 2007.08398, section 3)."""

import torch
from torch.nn import functional as F

from recognition.classifiers._gallery import of_all_ranks
from recognition.classifiers._margin_softmax import SMALLEST_NORM, SoftmaxOptions
from recognition.classifiers._queue import GalleryQueue
from recognition.classifiers._sweep import NO_LOGIT, sweep
from recognition.distributed import Ranks


def queue_loss(
    probes: torch.Tensor,
    labels: torch.Tensor,
    features: torch.Tensor,
    gallery_labels: torch.Tensor,
    queue: GalleryQueue,
    *,
    options: SoftmaxOptions,
    ranks: Ranks,
    training: bool,
) -> torch.Tensor:
    """This rank's share of the loss of all ranks' probes: the sum over ranks is the loss.

        L  =  1/N  sum over probes i of  log(1 + exp(lse_i - s target(cos_i)))

    cos_i: cosine of probe i and the gallery feature of its pair. lse_i = log sum of
    exp(s negatives(cos_ij)) over the other features j of the queue, after this batch's gallery
    features have replaced the oldest ones. Features j of the probe's own identity are left out. A
    head's penalty is added to each term. N counts the probes of all ranks.

    probes (V,b,D), not normalized, with labels (b,), are this rank's. V is 2 if both images of a
    pair are probes, and 1 otherwise. features (V,G,D), of length 1, with gallery_labels (G,), are
    those of all ranks' pairs: features[v, i] belongs to the pair of probes[v, i]. Each of the V
    parts is compared with its own features of the batch and with the same queue. The queue does not
    change.
    """
    head, (parts, count, _) = options.head, probes.shape
    mine = slice(ranks.rank * count, (ranks.rank + 1) * count)
    norms = torch.linalg.vector_norm(probes, dim=2)
    units = probes / norms.clamp_min(SMALLEST_NORM).unsqueeze(2)
    cos_t = (units * features[:, mine]).sum(2)

    # The head computes statistics and random draws over the probes of all ranks: (2, V·G).
    seen = of_all_ranks(torch.stack([cos_t, norms]).movedim(2, 0), ranks).movedim(0, 2)
    all_cos_t, all_norms = seen.flatten(1)
    if training:
        head.update_stats(all_cos_t.detach(), all_norms.detach())
    targets = head.target(all_cos_t, all_norms).view(parts, -1)[:, mine]

    # The features that stay in the queue.
    def leave_out(logits: torch.Tensor, start: int) -> None:
        owners = queue.identities[start : start + logits.shape[1]]
        own = labels[:, None] == owners
        logits.view(parts, count, -1).masked_fill_(own, -torch.inf)

    swept = sweep(
        units.flatten(0, 1),
        queue.features,
        cos_t.flatten(),
        is_open=queue.all_but(queue.next_places(len(gallery_labels))),
        leave_out=leave_out,
        options=options,
    )

    # The batch's features.
    cos = units @ features.mT
    logits = head.scale * head.negatives(
        cos.flatten(0, 1), cos_t.detach().flatten()[:, None]
    ).view_as(cos)
    logits = torch.where(labels[:, None] == gallery_labels, NO_LOGIT, logits)

    lse = torch.logsumexp(torch.cat([swept.lse.view(parts, count, 1), logits], 2), 2)
    # softplus(x) = log(1 + exp(x)). Above 40 it is x, which is exact in float64.
    losses = F.softplus(lse - head.scale * targets, threshold=40)
    penalty = head.penalty(norms.flatten())
    total = losses.sum() if penalty is None else losses.sum() + penalty.sum()
    return total / (parts * count * ranks.world)
