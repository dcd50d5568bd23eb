"""The mechanism that all margin heads share: what a head may say about the logits, and the one
angular formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

GRADIENTS = ("exact", "straight_through")


class MarginHead(nn.Module):
    """The maths of one margin loss on cosines; a classifier owns the rest (centers, softmax,
    reduction).

    The logits of a sample are scale * target(cos_t, norms) for its own class and scale *
    negatives(cos, cos_t) for the others. All cosines lie in [-1, 1] up to rounding; B is the global
    batch and every rank sees all of it. Only what a loss changes is overridden. State (moving
    averages) lives in buffers, changed in `observe` alone.
    """

    scale: float
    changes_negatives: bool = False

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Margin cosine of each sample's own class, differentiable. cos_t, norms (embedding
        lengths): (B,) -> (B,)."""
        raise NotImplementedError

    def negatives(self, cos: torch.Tensor, cos_t: torch.Tensor) -> torch.Tensor:
        """Cosines of the other classes as they enter the softmax, elementwise in cos (B,c); cos_t
        (B,1) is constant.

        Called once a chunk and again in the backward pass, so it must not change state.
        """
        return cos

    def penalty(self, norms: torch.Tensor) -> torch.Tensor | None:
        """Term of each sample (B,) added to the loss through its mean, or None."""
        return None

    def observe(self, cos_t: torch.Tensor, norms: torch.Tensor) -> None:
        """Update moving averages; called once for the probes of a loss (twice a step by a class
        pool, whose halves swap roles), without gradient, before the other methods."""


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or float64 where it is that: margins need more digits than bf16 or fp16
    have."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def of_angle(cos: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """function(theta), theta = arccos(cos) in [0, pi], differentiable everywhere.

    The slope of arccos has no bound at cos = -1 and 1: there the slope is taken just inside, two
    roundings from the end.
    """
    cos = at_least_float32(cos)
    end = 1 - 2 * torch.finfo(cos.dtype).eps
    inside = cos + (cos.clamp(-end, end) - cos).detach()
    sloped = function(inside.acos())
    with torch.no_grad():
        value = function(cos.clamp(-1, 1).acos())
    return sloped + (value - sloped).detach()


def cos_of_sum(theta: torch.Tensor, angle: torch.Tensor | float, *, guard: bool) -> torch.Tensor:
    """cos(theta + angle), angle in [0, pi].

    guard: beyond theta + angle = pi the cosine would rise again; use cos(theta) - angle *
    sin(angle) there (ArcFace's released code), which goes on falling.
    """
    total = theta + angle
    if not guard:
        return total.cos()
    shift = torch.as_tensor(angle, dtype=theta.dtype, device=theta.device)
    return torch.where(total < math.pi, total.cos(), theta.cos() - shift * shift.sin())


def with_gradient(value: torch.Tensor, cos: torch.Tensor, gradient: str) -> torch.Tensor:
    """`value` with its own slope ("exact"), or with slope 1 in cos ("straight_through", what
    insightface computes)."""
    if gradient == "exact":
        return value
    cos = at_least_float32(cos)
    return value.detach() + (cos - cos.detach())


def check_gradient(gradient: str) -> str:
    """`gradient` if it is a known choice."""
    if gradient not in GRADIENTS:
        raise ValueError(f"head gradient {gradient!r}: expected one of {', '.join(GRADIENTS)}")
    return gradient
