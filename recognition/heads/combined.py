"""Combined margin (arXiv 1801.07698, eq. 4): cos(m1 theta + m2) - m3.

With m1 = 1 and m2 = m3 = 0 it is NormFace (arXiv 1704.06369).
"""

import torch

from data.options import NonNegative, Positive
from recognition.heads._margin import Gradient, MarginHead, of_angle, with_gradient


class Combined(MarginHead):
    """A head without state. `gradient` is as in `build`."""

    def __init__(
        self, *, m1: float, m2: float, m3: float, scale: float, gradient: Gradient
    ) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.scale, self.gradient = scale, gradient

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        value = of_angle(cos_t, lambda theta: (self.m1 * theta + self.m2).cos() - self.m3)
        return with_gradient(value, cos_t, self.gradient)


def build(
    *,
    m1: Positive = 1.0,
    m2: NonNegative = 0.0,
    m3: NonNegative = 0.0,
    scale: Positive = 64.0,
    gradient: Gradient = "exact",
) -> Combined:
    """The margins of SphereFace, ArcFace and CosFace in one. As published, no guard past pi.

    m1: factor on the angle.
    m2: radians added to the angle.
    m3: subtracted from the cosine.
    scale: factor from cosines to logits.
    gradient: `exact`, or `straight_through`, whose slope in the cosine is always 1, as insightface
        computes.
    """
    return Combined(m1=m1, m2=m2, m3=m3, scale=scale, gradient=gradient)
