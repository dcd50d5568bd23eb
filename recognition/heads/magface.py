"""MagFace (arXiv 2103.06627, eq. 3-5): margin and regulariser grow with the embedding's length a, clipped to [10, 110].

cos(theta + m(a)), m linear; plus lambda (1/a + a / 110^2), which rewards long embeddings where they are cheap. Past
pi the released code's guard applies. Gradient flows into a, except where it is clipped.
"""

from __future__ import annotations

import torch

from recognition.margin import MarginHead, at_least_float32, cos_of_sum, of_angle


class MagFace(MarginHead):
    def __init__(
        self, *, margins: tuple[float, float], lengths: tuple[float, float], scale: float, regulariser: float
    ) -> None:
        super().__init__()
        self.margins, self.lengths, self.scale, self.regulariser = margins, lengths, scale, regulariser

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        (low, high), (short, long) = self.margins, self.lengths
        margin = low + (high - low) / (long - short) * (at_least_float32(norms).clamp(short, long) - short)
        return of_angle(cos_t, lambda theta: cos_of_sum(theta, margin, guard=True))

    def penalty(self, norms: torch.Tensor) -> torch.Tensor:
        lengths = at_least_float32(norms).clamp(*self.lengths)
        return self.regulariser * (1 / lengths + lengths / self.lengths[1] ** 2)


def build(
    *,
    margin: float = 0.45,
    margin_long: float = 0.8,
    shortest: float = 10.0,
    longest: float = 110.0,
    scale: float = 64.0,
    regulariser: float = 35.0,
) -> MagFace:
    """margin, margin_long: radians at lengths `shortest` and `longest`; regulariser: lambda_g."""
    if not 0 < shortest < longest:
        raise ValueError(f"magface shortest {shortest}, longest {longest}: expected 0 < shortest < longest")
    return MagFace(margins=(margin, margin_long), lengths=(shortest, longest), scale=scale, regulariser=regulariser)
