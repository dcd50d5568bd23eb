"""Combined margin (arXiv 1801.07698, eq. 4): cos(m1 theta + m2) - m3. m1 = 1, m2 = m3 = 0 is
NormFace (1704.06369)."""

from __future__ import annotations

import torch

from recognition.heads._margin import MarginHead, check_gradient, of_angle, with_gradient


class Combined(MarginHead):
    def __init__(self, *, m1: float, m2: float, m3: float, scale: float, gradient: str) -> None:
        super().__init__()
        self.m1, self.m2, self.m3, self.scale, self.gradient = (
            m1,
            m2,
            m3,
            scale,
            check_gradient(gradient),
        )

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        value = of_angle(cos_t, lambda theta: (self.m1 * theta + self.m2).cos() - self.m3)
        return with_gradient(value, cos_t, self.gradient)


def build(
    *,
    m1: float = 1.0,
    m2: float = 0.0,
    m3: float = 0.0,
    scale: float = 64.0,
    gradient: str = "exact",
) -> Combined:
    """m1: factor on the angle; m2: radians added to it; m3: taken from the cosine. No guard past
    pi, as published."""
    return Combined(m1=m1, m2=m2, m3=m3, scale=scale, gradient=gradient)
