"""MagFace (arXiv 2103.06627, eq. 3-5): margin and regularizer grow with the embedding's length a,
clipped to [10, 110].

cos(theta + m(a)), m linear; plus lambda (1/a + a / 110^2), which rewards long embeddings where they
are cheap. Past pi the released code's guard applies. Gradient flows into a, except where it is
clipped.
"""

from __future__ import annotations

import torch

from recognition.heads._margin import MarginHead, at_least_float32, cos_of_sum, of_angle


class MagFace(MarginHead):
    def __init__(
        self,
        *,
        margins: tuple[float, float],
        lengths: tuple[float, float],
        scale: float,
        lambda_g: float,
    ) -> None:
        super().__init__()
        self.margins, self.lengths, self.scale, self.lambda_g = margins, lengths, scale, lambda_g

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        (low, high), (short, long) = self.margins, self.lengths
        margin = low + (high - low) / (long - short) * (
            at_least_float32(norms).clamp(short, long) - short
        )
        return of_angle(cos_t, lambda theta: cos_of_sum(theta, margin, guard=True))

    def penalty(self, norms: torch.Tensor) -> torch.Tensor:
        lengths = at_least_float32(norms).clamp(*self.lengths)
        return self.lambda_g * (1 / lengths + lengths / self.lengths[1] ** 2)


def build(
    *,
    l_margin: float = 0.45,
    u_margin: float = 0.8,
    l_a: float = 10.0,
    u_a: float = 110.0,
    scale: float = 64.0,
    lambda_g: float = 35.0,
) -> MagFace:
    """l_margin, u_margin: radians at lengths `l_a` and `u_a`; lambda_g: weight of the
    regularizer."""
    if not 0 < l_a < u_a:
        raise ValueError(f"magface l_a {l_a}, u_a {u_a}: expected 0 < l_a < u_a")
    return MagFace(margins=(l_margin, u_margin), lengths=(l_a, u_a), scale=scale, lambda_g=lambda_g)
