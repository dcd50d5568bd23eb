"""CurricularFace (arXiv 2004.00288, eq. 5-7): ArcFace with growing weight on hard negatives.

A negative with cos > cos(theta_y + m) enters as cos (t + cos), where t is the running mean of the
targets' cosines. The target has the released code's guard past pi.
"""

import torch

from data.options import NonNegative, Positive, Share
from recognition.heads._margin import MarginHead, cos_of_sum, of_angle


class CurricularFace(MarginHead):
    """Its state is t, the running mean of the targets' cosines."""

    changes_negatives = True
    t: torch.Tensor

    def __init__(self, *, margin: float, scale: float, t_alpha: float) -> None:
        super().__init__()
        self.margin, self.scale, self.t_alpha = margin, scale, t_alpha
        self.register_buffer("t", torch.tensor(0.0))

    def update_stats(self, cos_t: torch.Tensor, norms: torch.Tensor) -> None:
        newest = cos_t.mean().to(self.t.dtype)
        # torch.where does not wait for the device, as `if` would.
        self.t.lerp_(torch.where(cos_t.isfinite().all(), newest, self.t), self.t_alpha)

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return of_angle(cos_t, lambda theta: cos_of_sum(theta, self.margin, guard=True))

    def negatives(self, cos: torch.Tensor, cos_t: torch.Tensor) -> torch.Tensor:
        # A negative is hard if it is nearer than the target with its margin.
        bound = of_angle(cos_t.detach(), lambda theta: cos_of_sum(theta, self.margin, guard=False))
        return torch.where(cos > bound, cos * (self.t + cos), cos)


def build(
    *,
    margin: NonNegative = 0.5,
    scale: Positive = 64.0,
    t_alpha: Share = 0.01,
) -> CurricularFace:
    """CurricularFace: ArcFace whose hard negatives gain weight as training goes on.

    margin: radians added to the angle between an embedding and its own class center.
    scale: factor from cosines to logits.
    t_alpha: weight of the newest batch in t, the running mean of the cosines between embeddings and
        their own class centers.
    """
    return CurricularFace(margin=margin, scale=scale, t_alpha=t_alpha)
