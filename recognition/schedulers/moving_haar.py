"""The Moving Haar schedule, FastFace's first version (arXiv 2404.11118 v1)."""

from torch.optim import Optimizer

from fastface.schedulers import MovingHaarLR


def build(
    optimizer: Optimizer,
    *,
    window: int = 4000,
    threshold: float = 0.06,
    patience_steps: int | None = None,
    factor: float = 0.5,
    restart_after: int | None = 3,
    restart_factor: float = 4.0,
    warmup_steps: int = 0,
) -> MovingHaarLR:
    """Defaults are those of the published MS1MV3 run; see `fastface.MovingHaarLR`."""
    return MovingHaarLR(
        optimizer,
        window,
        threshold=threshold,
        patience_steps=patience_steps,
        factor=factor,
        restart_after=restart_after,
        restart_factor=restart_factor,
        warmup_steps=warmup_steps,
    )
