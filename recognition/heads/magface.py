"""MagFace (arXiv 2103.06627, eq. 3-5): margin and regularizer depend on the embedding's length a.

    cos(theta + m(a)) + lambda_g (1/a + a / u_a²),    m linear from l_margin to u_margin

The length is clipped to [l_a, u_a]. The regularizer is smallest at u_a, so it favors long
embeddings. The gradient flows into a, except where a is clipped.

The released code trains with `easy_margin`: where cos(theta) is 0 or less there is no margin. The
logit then jumps down by s sin(m(a)) as theta falls below pi / 2. Without `easy_margin` all samples
have the margin, and past pi the guard of `cos_of_sum` applies.
"""

import torch

from data.options import NonNegative, Positive
from recognition.heads._margin import MarginHead, at_least_float32, cos_of_sum, of_angle


class MagFace(MarginHead):
    """A head without state. margins, lengths: (lower, upper), as l_* and u_* of `build`."""

    def __init__(
        self,
        *,
        margins: tuple[float, float],
        lengths: tuple[float, float],
        scale: float,
        lambda_g: float,
        easy_margin: bool,
    ) -> None:
        super().__init__()
        self.margins, self.lengths, self.scale, self.lambda_g = margins, lengths, scale, lambda_g
        self.easy_margin = easy_margin

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        # m(a): on the line from (l_a, l_margin) to (u_a, u_margin)
        (low, high), (short, long) = self.margins, self.lengths
        beyond = at_least_float32(norms).clamp(short, long) - short
        margin = low + (high - low) / (long - short) * beyond
        guard = not self.easy_margin
        value = of_angle(cos_t, lambda theta: cos_of_sum(theta, margin, guard=guard))
        if not self.easy_margin:
            return value
        cos_t = at_least_float32(cos_t)
        return torch.where(cos_t > 0, value, cos_t)

    def penalty(self, norms: torch.Tensor) -> torch.Tensor:
        lengths = at_least_float32(norms).clamp(*self.lengths)
        return self.lambda_g * (1 / lengths + lengths / self.lengths[1] ** 2)


def build(
    *,
    l_margin: NonNegative = 0.45,
    u_margin: NonNegative = 0.8,
    l_a: Positive = 10.0,
    u_a: Positive = 110.0,
    scale: Positive = 64.0,
    lambda_g: NonNegative = 35.0,
    easy_margin: bool = True,
) -> MagFace:
    """MagFace: margin and regularizer grow with the embedding's length.

    l_margin: margin in radians for embeddings of length `l_a`.
    u_margin: margin in radians for embeddings of length `u_a`.
    l_a: smallest length. Shorter embeddings count as having this length.
    u_a: largest length, more than `l_a`. Longer embeddings count as having this length.
    scale: factor from cosines to logits.
    lambda_g: weight of the regularizer, which rewards long embeddings.
    easy_margin: no margin for an embedding whose cosine with its own class center is 0 or less, as
        in the released code. Without it, all embeddings get the margin.
    """
    if l_a >= u_a:
        raise ValueError(f"head.l_a: found {l_a}, expected less than head.u_a, which is {u_a}")
    return MagFace(
        margins=(l_margin, u_margin),
        lengths=(l_a, u_a),
        scale=scale,
        lambda_g=lambda_g,
        easy_margin=easy_margin,
    )
