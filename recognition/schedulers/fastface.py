"""The FastFace schedule of the paper (arXiv 2404.11118 v2), or its form for short runs."""

from torch.optim import Optimizer

from fastface.schedulers import FastFaceLR


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    for_horizon: bool = False,
    alpha: float = 1e-3,
    beta: float = 1e-3,
    threshold: float | None = None,
    patience_fraction: float = 0.05,
    factor: float = 0.5,
    max_decays: int = 8,
    warmup_steps: int = 0,
) -> FastFaceLR:
    """Defaults are the published values, made for runs of 200,000 steps and losses of scale 64.

    for_horizon: constants and a stationarity test that fit runs of 1000 steps and more
    (`FastFaceLR.for_horizon`); alpha, beta and patience_fraction are then not used. threshold: λ,
    loss per step; null: the published 5e-5, or with for_horizon 10.11625 / total steps.
    """
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
