"""ArcFace (arXiv 1801.07698, eq. 3): cos(theta + m) for the sample's own class."""

import torch

from data.options import NonNegative, Positive
from recognition.heads._margin import Gradient, MarginHead, cos_of_sum, of_angle, with_gradient


class ArcFace(MarginHead):
    """A head without state. `guard` and `gradient` are as in `build`."""

    def __init__(self, *, margin: float, scale: float, gradient: Gradient, guard: bool) -> None:
        super().__init__()
        self.margin, self.scale, self.gradient, self.guard = margin, scale, gradient, guard

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        value = of_angle(cos_t, lambda theta: cos_of_sum(theta, self.margin, guard=self.guard))
        return with_gradient(value, cos_t, self.gradient)


def build(
    *,
    margin: NonNegative = 0.5,
    scale: Positive = 64.0,
    gradient: Gradient = "exact",
    guard: bool = True,
) -> ArcFace:
    """ArcFace: a margin on the angle. The published rows use `straight_through` and no guard.

    margin: radians added to the angle between an embedding and its own class center.
    scale: factor from cosines to logits.
    gradient: `exact`, or `straight_through`, whose slope in the cosine is always 1, as insightface
        computes.
    guard: where angle plus margin is more than pi, the cosine would rise again. With the guard the
        logit goes on falling there.
    """
    return ArcFace(margin=margin, scale=scale, gradient=gradient, guard=guard)
