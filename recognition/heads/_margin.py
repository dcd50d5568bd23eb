"""What all margin heads share: the interface to a classifier, and the angular formulas."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Gradient = Literal["exact", "straight_through"]


class MarginHead(nn.Module):
    """The mathematics of one margin loss on cosines.

    A classifier does the rest: centers, softmax and mean. The logits of a sample are
    scale * target(cos_t, norms) for its own class and scale * negatives(cos, cos_t) for the others.
    All cosines lie in [-1, 1] up to rounding. B is the global batch, and every rank sees all of it.
    A head overrides only what its loss changes. State, such as moving averages, lives in buffers
    that only `update_stats` changes.
    """

    scale: float
    changes_negatives: bool = False

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Margin cosine (B,) of each sample's own class, differentiable.

        cos_t (B,): cosine with the own class. norms (B,): length of the embedding.
        """
        raise NotImplementedError

    def negatives(self, cos: torch.Tensor, cos_t: torch.Tensor) -> torch.Tensor:
        """Cosines of the other classes as they enter the softmax, elementwise in cos (B,c).

        cos_t (B,1) gets no gradient. A classifier calls this once per chunk, and again in the
        backward pass, so it must not change state.
        """
        return cos

    def penalty(self, norms: torch.Tensor) -> torch.Tensor | None:
        """One term per sample (B,), whose mean is added to the loss, or None."""
        return None

    def update_stats(self, cos_t: torch.Tensor, norms: torch.Tensor) -> None:
        """Update moving averages.

        A classifier calls this once per loss, before the other methods and without gradient. A
        class pool with `swap` computes two losses per step.
        """


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or in float64 if it has that type.

    Margins need more precision than bf16 or fp16 have.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def of_angle(cos: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """function(theta), theta = arccos(cos) in [0, pi], differentiable everywhere.

    The slope of arccos has no bound at cos = -1 and 1. There the slope is that of a point just
    inside, two roundings from the end.
    """
    cos = at_least_float32(cos)

    # The slope is that of the point inside.
    end = 1 - 2 * torch.finfo(cos.dtype).eps
    inside = cos + (cos.clamp(-end, end) - cos).detach()
    sloped = function(inside.acos())

    # The value is that of the point itself.
    with torch.no_grad():
        value = function(cos.clamp(-1, 1).acos())
    return sloped + (value - sloped).detach()


def cos_of_sum(theta: torch.Tensor, angle: torch.Tensor | float, *, guard: bool) -> torch.Tensor:
    """cos(theta + angle), angle in [0, pi].

    guard: beyond theta + angle = pi the cosine would rise again. There the result is
    cos(theta) - angle * sin(angle), which goes on falling (ArcFace's released code).
    """
    total = theta + angle
    if not guard:
        return total.cos()
    sine = angle.sin() if isinstance(angle, torch.Tensor) else math.sin(angle)
    return torch.where(total < math.pi, total.cos(), theta.cos() - angle * sine)


def with_gradient(value: torch.Tensor, cos: torch.Tensor, gradient: Gradient) -> torch.Tensor:
    """`value`, a function of cos, with another slope if `gradient` asks for it.

    "exact" keeps its slope. "straight_through" replaces the slope in cos by 1, as insightface does.
    """
    if gradient == "exact":
        return value
    cos = at_least_float32(cos)
    return value.detach() + (cos - cos.detach())
