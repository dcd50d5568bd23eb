"""Gradient checkpointing for one block of a backbone: less memory, a second forward in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def _still_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms of `block` use the batch's statistics and leave their running ones alone.

    Without this the second forward would count every batch twice.
    """
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def recompute(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`block(x)` whose inner activations are not kept but computed again in the backward pass.

    Same values, gradients and batch-norm statistics as `block(x)`; costs about a third more time.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)
