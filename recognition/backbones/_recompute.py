"""Gradient checkpointing of one block of a backbone: less memory, and a second forward pass of the
block during the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _still_statistics(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics of `block` as they are. Without this every batch would count
    twice, as the block computes it twice."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]

    # Momentum 0 keeps means and variances; the count goes up on a copy that is thrown away.
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def recompute(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`block(x)`, whose inner activations are computed again in the backward pass and not kept.

    Values, gradients and batch-norm statistics are those of `block(x)`. It costs about a third more
    time.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_statistics(block)

    # A compiled graph updates statistics once, and admits no context.
    if torch.compiler.is_compiling():
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)
