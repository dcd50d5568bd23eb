"""SphereFace (arXiv 1704.08063, eq. 6): psi(theta) = (-1)^k cos(m theta) - 2k on [k pi/m, (k+1)
pi/m].

As in its successors the embedding is normalized and scaled (SphereFace-R, arXiv 2109.05565),
without annealing.
"""

from __future__ import annotations

import math

import torch

from recognition.heads._margin import MarginHead, of_angle


class SphereFace(MarginHead):
    def __init__(self, *, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return of_angle(cos_t, self._psi)

    def _psi(self, theta: torch.Tensor) -> torch.Tensor:
        turns = (self.margin * theta.detach() / math.pi).floor()
        sign = 1 - 2 * (turns % 2)
        return sign * (self.margin * theta).cos() - 2 * turns


def build(
    *,
    margin: float = 1.7,
    scale: float = 64.0,
) -> SphereFace:
    """margin: factor on the angle, at least 1."""
    if margin < 1:
        raise ValueError(f"sphereface margin {margin}: expected at least 1")
    return SphereFace(margin=margin, scale=scale)
