"""AdaFace (arXiv 2204.00964, eq. 7-12): the margin follows the embedding's length |e|.

    z = clip((|e| - mean) / (std / h), -1, 1),    cos(theta - m z) - (m + m z)

The length is a sign of image quality; mean and std are its running statistics. The paper leaves the
range of theta - m z open. The released code clips it to [0.001, pi - 0.001]; here it is clipped to
[0, pi].
"""

import math

import torch

from data.options import NonNegative, Positive, Share
from recognition.heads._margin import MarginHead, at_least_float32, of_angle

SHORTEST, LONGEST = 0.001, 100.0  # lengths are clipped to this range


class AdaFace(MarginHead):
    """Its state is the running mean and standard deviation of the embeddings' lengths."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *, margin: float, scale: float, h: float, t_alpha: float) -> None:
        super().__init__()
        self.margin, self.scale, self.h, self.t_alpha = margin, scale, h, t_alpha
        self.register_buffer("mean", torch.tensor(20.0))  # as the released code starts
        self.register_buffer("std", torch.tensor(100.0))

    def update_stats(self, cos_t: torch.Tensor, norms: torch.Tensor) -> None:
        if len(norms) > 1:
            norms = norms.clamp(SHORTEST, LONGEST).to(self.mean.dtype)
            finite = norms.isfinite().all()  # stays on the device: no wait for it
            for average, newest in ((self.mean, norms.mean()), (self.std, norms.std())):
                average.lerp_(torch.where(finite, newest, average), self.t_alpha)

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        # z measures the length in units of its spread, -1 for short and 1 for long embeddings.
        norms = at_least_float32(norms.detach()).clamp(SHORTEST, LONGEST)
        z = ((norms - self.mean) / (self.std + 1e-3) * self.h).clamp(-1, 1)

        # A short embedding gets a larger angle margin, a long one a larger margin on the cosine.
        turned = of_angle(cos_t, lambda theta: (theta - self.margin * z).clamp(0, math.pi).cos())
        return turned - (self.margin + self.margin * z)


def build(
    *,
    margin: NonNegative = 0.4,
    scale: Positive = 64.0,
    h: Positive = 0.333,
    t_alpha: Share = 0.01,
) -> AdaFace:
    """AdaFace: a margin that follows the embedding's length.

    margin: m. It changes the angle by up to m radians, and the cosine by up to 2 m.
    scale: factor from cosines to logits.
    h: how fast the margin changes with the length. z reaches -1 and 1 where the length is 1/h
        standard deviations below and above its mean.
    t_alpha: weight of the newest batch in the running mean and standard deviation.
    """
    return AdaFace(margin=margin, scale=scale, h=h, t_alpha=t_alpha)
