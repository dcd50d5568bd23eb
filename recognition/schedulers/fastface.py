"""The FastFace schedule of the paper (arXiv 2404.11118 v2)."""

from torch.optim import Optimizer

from fastface import FastFaceLR


def build(
    *,
    optimizer: Optimizer,
    total_steps: int,
    alpha: float = 1e-3,
    beta: float = 1e-3,
    threshold: float = 5e-5,
    patience_fraction: float = 0.05,
    factor: float = 0.5,
    max_decays: int = 8,
    warmup_steps: int = 0,
) -> FastFaceLR:
    """Defaults are the published values, made for runs of 200,000 steps; see `fastface.FastFaceLR`."""
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
