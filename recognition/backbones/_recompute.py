"""Gradient checkpointing: less memory, for a second forward pass of each block of a backbone."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _still_statistics(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics of `block` as they are.

    The block computes every batch twice, and would count it twice without this.
    """
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


def recompute(block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """`block(*inputs)`, whose backward pass computes the inner activations again.

    Values, gradients and batch-norm statistics are those of `block(*inputs)`. It costs about a
    third more time.
    """
    result: torch.Tensor = _recomputed(block, block, *inputs)
    return result


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """`forward(*inputs, **named)`, which runs `block`, without its inner activations."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_statistics(block)

    call = partial(checkpoint, forward, *inputs, use_reentrant=False, **named)
    # A compiled graph updates the statistics once, and does not allow a context.
    return call() if torch.compiler.is_compiling() else call(context_fn=contexts)


def recompute_itself(block: nn.Module) -> None:
    """Make a block of a foreign network recompute itself in training, as `recompute` does.

    It gets a class of its own, so that neither the names of its parameters nor the network around
    it change.
    """
    kind = type(block)

    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        plain = partial(kind.forward, self)
        if not self.training:
            return plain(*inputs, **named)
        return _recomputed(self, plain, *inputs, **named)

    block.__class__ = type(kind.__name__, (kind,), {"forward": forward})
