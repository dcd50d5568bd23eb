"""The Moving Haar schedule, FastFace's first version (arXiv 2404.11118 v1)."""

from typing import Annotated

from torch.optim import Optimizer

from data.options import Count, CountOrZero, Range
from fastface.schedulers import MovingHaarLR
from recognition.schedulers import check_warmup

ANY_LENGTH = True


def build(
    optimizer: Optimizer,
    total_steps: int,
    *,
    window: Annotated[int, Range(at_least=2)] = 4000,
    threshold: float = 0.06,
    patience_steps: CountOrZero | None = None,
    factor: Annotated[float, Range(above=0, below=1)] = 0.5,
    restart_after: Count | None = 3,
    restart_factor: Annotated[float, Range(above=1)] = 4.0,
    warmup_steps: CountOrZero = 0,
) -> MovingHaarLR:
    """Defaults are those of the published MS1MV3 run; see `fastface.MovingHaarLR`.

    window: m, the number of losses in each moving window.
    threshold: λ, in units of the loss. A step is stationary if H, the fall of the loss from the
        older to the newer window, is below λ.
    patience_steps: stationary steps in a row before the learning rate changes. null: twice the
        window.
    factor: the learning rate is multiplied by it when it is lowered.
    restart_after: number of decays in a row after which the learning rate is raised instead. null:
        never.
    restart_factor: the learning rate is multiplied by it when it is raised.
    warmup_steps: optimizer steps of linear warm-up, in which no step counts as stationary.
    """
    check_warmup(warmup_steps, total_steps)
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
