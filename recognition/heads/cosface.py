"""CosFace (arXiv 1801.09414, eq. 4): cos(theta) - m for the sample's own class."""

import torch

from data.options import NonNegative, Positive
from recognition.heads._margin import MarginHead, at_least_float32


class CosFace(MarginHead):
    """A head without state."""

    def __init__(self, *, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return at_least_float32(cos_t) - self.margin


def build(
    *,
    margin: NonNegative = 0.4,
    scale: Positive = 64.0,
) -> CosFace:
    """CosFace: a margin on the cosine.

    margin: subtracted from the cosine of an embedding and its own class center.
    scale: factor from cosines to logits.
    """
    return CosFace(margin=margin, scale=scale)
