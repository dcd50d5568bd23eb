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
    *,
    for_horizon: bool = False,
    alpha: AverageRate = 1e-3,
    beta: AverageRate = 1e-3,
    threshold: float | None = None,
    patience_fraction: Share = 0.05,
    factor: DecayFactor = 0.5,
    max_decays: CountOrZero = 8,
    warmup_steps: CountOrZero = 0,
) -> FastFaceLR:
    """Defaults are the published values, made for runs of 200,000 steps and losses of scale 64.

    for_horizon: use constants and a stationarity test that fit runs of 1000 steps and more
        (`FastFaceLR.for_horizon`). alpha, beta and patience_fraction are then not used.
    alpha: rate of the first average of the loss.
    beta: rate of the second average of the loss.
    threshold: λ, in loss per step. A step whose loss falls more slowly is stationary. null: the
        published 5e-5, or 10.11625 / total steps with for_horizon.
    patience_fraction: share of the run's steps that must be stationary in a row before a decay.
    factor: what a decay multiplies the rate by.
    max_decays: decays after which the rate stays.
    warmup_steps: optimizer steps of linear warm-up, in which no step counts as stationary.
    """
    check_warmup(warmup_steps, total_steps)
    if for_horizon:
        return FastFaceLR.for_horizon(
            optimizer,
            total_steps,
            threshold=threshold,
            factor=factor,
            max_decays=max_decays,
            warmup_steps=warmup_steps,
        )
    return FastFaceLR(
        optimizer,
        total_steps,
        alpha=alpha,
        beta=beta,
        threshold=5e-5 if threshold is None else threshold,
        patience_fraction=patience_fraction,
        factor=factor,
        max_decays=max_decays,
        warmup_steps=warmup_steps,
    )
