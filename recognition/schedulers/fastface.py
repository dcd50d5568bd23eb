"""The FastFace schedule of the paper (arXiv 2404.11118 v2), or its form for short runs."""

from torch.optim import Optimizer

from fastface import FastFaceLR


def build(
    *,
    optimizer: Optimizer,
    total_steps: int,
    for_horizon: bool = False,
    alpha: float = 1e-3,
    beta: float = 1e-3,
    threshold: float = 5e-5,
    patience_fraction: float = 0.05,
    factor: float = 0.5,
    max_decays: int = 8,
    warmup_steps: int = 0,
) -> FastFaceLR:
    """Defaults are the published values, made for runs of 200,000 steps.

    for_horizon: constants and a stationarity test that fit runs of 1000 steps and more (`FastFaceLR.for_horizon`);
    alpha, beta, threshold and patience_fraction are then not used.
    """
    if for_horizon:
        return FastFaceLR.for_horizon(
            optimizer, total_steps, factor=factor, max_decays=max_decays, warmup_steps=warmup_steps
        )
    return FastFaceLR(
        optimizer,
        total_steps,
        alpha=alpha,
        beta=beta,
        threshold=threshold,
        patience_fraction=patience_fraction,
        factor=factor,
        max_decays=max_decays,
        warmup_steps=warmup_steps,
    )
