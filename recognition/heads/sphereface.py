"""SphereFace (arXiv 1704.08063, eq. 6).

    psi(theta) = (-1)^k cos(m theta) - 2k    for theta in [k pi/m, (k+1) pi/m]

As in its successors the embedding is normalized and scaled (SphereFace-R, arXiv 2109.05565),
without annealing.
"""

import math
from typing import Annotated

import torch

from data.options import Positive, Range
from recognition.heads._margin import MarginHead, of_angle


class SphereFace(MarginHead):
    """A head without state."""

    def __init__(self, *, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return of_angle(cos_t, self._psi)

    def _psi(self, theta: torch.Tensor) -> torch.Tensor:
        # k counts the half turns of m theta; it makes psi fall over the whole range of theta.
        turns = (self.margin * theta.detach() / math.pi).floor()
        sign = 1 - 2 * (turns % 2)
        return sign * (self.margin * theta).cos() - 2 * turns


def build(
    *,
    margin: Annotated[float, Range(at_least=1)] = 1.7,
    scale: Positive = 64.0,
) -> SphereFace:
    """SphereFace: a factor on the angle.

    margin: m, by which the angle is multiplied.
    scale: factor from cosines to logits.
    """
    return SphereFace(margin=margin, scale=scale)
