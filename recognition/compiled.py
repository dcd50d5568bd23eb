"""torch.compile for the backbone, where the machine can compile."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import ShortenTraceback

log = logging.getLogger(__name__)


def compiled(forward: Callable[..., torch.Tensor], mode: str) -> Callable[..., torch.Tensor]:
    """`forward`, compiled for each shape at its first call in this mode of torch.compile.

    Where that fails, as without a C++ compiler or Triton, it says so in one line and is called as
    it is.
    """
    chosen: Callable[..., torch.Tensor] = torch.compile(forward, mode=mode, dynamic=False)

    def call(*args: Any) -> torch.Tensor:
        nonlocal chosen
        try:
            return chosen(*args)
        # The base of BackendCompilerFailed, TritonMissing and GPUTooOldForTriton.
        except ShortenTraceback as error:
            reason = str(error).partition("\n")[0]
            log.warning(
                "run.compile: the backbone can't be compiled here (%s), so it runs uncompiled, "
                "which is slower; run.compile=false does not try",
                reason,
            )
            chosen = forward
            return chosen(*args)

    return call
