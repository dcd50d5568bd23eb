"""ArcFace (arXiv 1801.07698, eq. 3): cos(theta + m) for the sample's own class."""

from __future__ import annotations

import torch

from recognition.heads._margin import (
    MarginHead,
    check_gradient,
    cos_of_sum,
    of_angle,
    with_gradient,
)


class ArcFace(MarginHead):
    def __init__(self, *, margin: float, scale: float, gradient: str, guard: bool) -> None:
        super().__init__()
        self.margin, self.scale, self.gradient, self.guard = (
            margin,
            scale,
            check_gradient(gradient),
            guard,
        )

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        value = of_angle(cos_t, lambda theta: cos_of_sum(theta, self.margin, guard=self.guard))
        return with_gradient(value, cos_t, self.gradient)


def build(
    *,
    margin: float = 0.5,
    scale: float = 64.0,
    gradient: str = "exact",
    guard: bool = True,
) -> ArcFace:
    """margin in radians. The published rows use gradient "straight_through" and no guard."""
    return ArcFace(margin=margin, scale=scale, gradient=gradient, guard=guard)
