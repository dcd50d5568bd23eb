"""ElasticFace (arXiv 2109.09416, eq. 4-5): ArcFace or CosFace with a random margin per sample.

The draws depend on `seed` and on the number of losses so far, which is part of the state. They are
therefore equal on all ranks and after a resume. The number is kept on the CPU, which makes the
draws: asking a device for it would wait for the device.
"""

from typing import Literal

import torch

from data.options import NonNegative, Positive
from data.to_device import to_device
from recognition.heads._margin import MarginHead, at_least_float32, cos_of_sum, of_angle
from recognition.seeds import generator

Kind = Literal["arc", "cos"]
MEANS: dict[Kind, float] = {"arc": 0.5, "cos": 0.35}


class ElasticFace(MarginHead):
    """Its state is `steps`, the number of losses so far."""

    def __init__(self, *, kind: Kind, margin: float, std: float, scale: float, seed: int) -> None:
        super().__init__()
        self.kind, self.margin, self.std, self.scale, self.seed = kind, margin, std, scale, seed
        self.steps = 0

    def get_extra_state(self) -> torch.Tensor:
        """What `state_dict` holds besides the buffers."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """What `load_state_dict` does with it."""
        self.steps = int(state)

    def update_stats(self, cos_t: torch.Tensor, norms: torch.Tensor) -> None:
        self.steps += 1

    def margins(self, count: int) -> torch.Tensor:
        """The (count,) margins of the current loss, float64."""
        draw = generator(self.seed, self.steps)
        return self.margin + self.std * torch.randn(count, dtype=torch.float64, generator=draw)

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        cos_t = at_least_float32(cos_t)
        margins = to_device(self.margins(len(cos_t)).to(cos_t.dtype), cos_t.device)
        if self.kind == "cos":
            return cos_t - margins
        return of_angle(cos_t, lambda theta: cos_of_sum(theta, margins, guard=False))


def build(
    seed: int = 0,
    *,
    kind: Kind = "arc",
    margin: NonNegative | None = None,
    std: NonNegative = 0.0125,
    scale: Positive = 64.0,
) -> ElasticFace:
    """ElasticFace: a margin drawn anew for every sample.

    kind: `arc` adds the margin to the angle, `cos` subtracts it from the cosine.
    margin: mean of the margins, in radians (`arc`) or in units of the cosine (`cos`). null: 0.5 for
        `arc` and 0.35 for `cos`.
    std: standard deviation of the margins.
    scale: factor from cosines to logits.
    """
    mean = MEANS[kind] if margin is None else margin
    return ElasticFace(kind=kind, margin=mean, std=std, scale=scale, seed=seed)
