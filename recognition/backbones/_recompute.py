"""Gradient checkpointing for one block of a backbone: less memory, a second forward in the backward
pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _still_statistics(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics of `block` as they are; without this every batch would count
    twice."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
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
    """`block(x)` whose inner activations are not kept but computed again in the backward pass.

    Same values, gradients and batch-norm statistics as `block(x)`; costs about a third more time.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_statistics(block)

    if (
        torch.compiler.is_compiling()
    ):  # a compiled graph updates statistics once, and takes no context
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)
