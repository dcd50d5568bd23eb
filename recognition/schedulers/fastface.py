"""The FastFace schedule of the paper (arXiv 2404.11118 v2), or its form for short runs."""

from typing import Annotated

from torch.optim import Optimizer

from data.options import CountOrZero, Range, Share
from fastface.schedulers import FastFaceLR
from recognition.schedulers import check_warmup

AverageRate = Annotated[float, Range(above=0, at_most=1)]
DecayFactor = Annotated[float, Range(above=0, below=1)]


def build(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    for_horizon: bool = False,
    alpha: AverageRate = 1e-3,
    beta: AverageRate = 1e-3,
    threshold: float | None = None,
    patience_fraction: Share | None = None,
    factor: DecayFactor = 0.5,
    max_decays: CountOrZero = 8,
    warmup_steps: CountOrZero = 0,
    cooldown: Share | None = None,
) -> FastFaceLR:
    """Defaults are the published values, made for runs of 200,000 steps and losses of scale 64.

    for_horizon: choose the averages by the noise of the loss and the length of an epoch, for runs
        of 1,000 to 200,000 steps (`FastFaceLR.for_horizon`). alpha and beta are then not used.
    alpha: weight of the newest loss in the running average of the loss.
    beta: weight of the newest fall in the running average of the falls of the loss.
    threshold: λ, in loss per step. A step is stationary if the averaged loss falls more slowly.
        null: the published 5e-5, or with for_horizon 10.11625 divided by the steps of the run.
    patience_fraction: share of the run's steps that must be stationary in a row before the learning
        rate is lowered. null: the published 0.05; with for_horizon also the delay of averages that
        are as long as an epoch, which they are in runs of ten epochs and more.
    factor: the learning rate is multiplied by it when it is lowered.
    max_decays: how often the learning rate may be lowered.
    warmup_steps: optimizer steps of linear warm-up, in which no step counts as stationary.
    cooldown: share of the run's steps at its end, over which a straight line to zero multiplies the
        learning rate. null: none, as in the paper, or 0.2 with for_horizon.
    """
    check_warmup(warmup_steps, total_steps)
    # The defaults of what is null are those of the two constructors.
    chosen = {"threshold": threshold, "patience_fraction": patience_fraction, "cooldown": cooldown}
    given = {name: value for name, value in chosen.items() if value is not None}
    if for_horizon:
        return FastFaceLR.for_horizon(
            optimizer,
            total_steps,
            steps_per_epoch=steps_per_epoch,
            factor=factor,
            max_decays=max_decays,
            warmup_steps=warmup_steps,
            **given,
        )
    return FastFaceLR(
        optimizer,
        total_steps,
        alpha=alpha,
        beta=beta,
        factor=factor,
        max_decays=max_decays,
        warmup_steps=warmup_steps,
        **given,
    )
