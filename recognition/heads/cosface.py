"""CosFace (arXiv 1801.09414, eq. 4): cos(theta) - m for the sample's own class."""

from __future__ import annotations

import torch

from recognition.heads._margin import MarginHead, at_least_float32


class CosFace(MarginHead):
    def __init__(self, *, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return at_least_float32(cos_t) - self.margin


def build(
    *,
    margin: float = 0.4,
    scale: float = 64.0,
) -> CosFace:
    """margin in units of the cosine."""
    return CosFace(margin=margin, scale=scale)
