"""Classifiers: one file each; each exports `build(**args) -> Classifier`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Classifier(Protocol):
    """What the training loop asks of a classifier, which is an nn.Module.

    One that is sharded over ranks has `rows`, the range of classes it holds, and `weight`, their
    centers (rows · K, D).
    """

    def __call__(
        self, backbone: Callable[..., torch.Tensor], images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Mean loss of the global batch, a scalar."""

    def prepare(self, lr: float) -> None:
        """Called before the forward passes of each optimizer step, with its rate."""

    def update(self) -> None:
        """Called after each successful optimizer step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...
