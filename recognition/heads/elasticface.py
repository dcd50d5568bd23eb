"""ElasticFace (arXiv 2109.09416, eq. 4-5): ArcFace or CosFace with a margin drawn anew for every
sample.

The draws are a function of `seed` and of a step count kept in the state: equal on all ranks, and
after a resume.
"""

from __future__ import annotations

import torch

from recognition.classifiers._rows import check_choice
from recognition.heads._margin import MarginHead, at_least_float32, cos_of_sum, of_angle
from recognition.seeds import generator


class ElasticFace(MarginHead):
    steps: torch.Tensor

    def __init__(self, *, kind: str, margin: float, std: float, scale: float, seed: int) -> None:
        super().__init__()
        self.kind, self.margin, self.std, self.scale, self.seed = kind, margin, std, scale, seed
        self.register_buffer("steps", torch.tensor(0))

    def observe(self, cos_t: torch.Tensor, norms: torch.Tensor) -> None:
        self.steps += 1

    def margins(self, count: int) -> torch.Tensor:
        """The (count,) margins of the current step, float64."""
        draws = torch.randn(
            count, dtype=torch.float64, generator=generator(self.seed, int(self.steps))
        )
        return self.margin + self.std * draws

    def target(self, cos_t: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        cos_t = at_least_float32(cos_t)
        margins = self.margins(len(cos_t)).to(cos_t)
        if self.kind == "cos":
            return cos_t - margins
        return of_angle(cos_t, lambda theta: cos_of_sum(theta, margins, guard=False))


def build(
    seed: int = 0,
    *,
    kind: str = "arc",
    margin: float | None = None,
    std: float = 0.0125,
    scale: float = 64.0,
) -> ElasticFace:
    """kind: arc (margin in radians, mean 0.5) or cos (margin in units of the cosine, mean 0.35)."""
    check_choice("elasticface kind", kind, ("arc", "cos"))
    mean = margin if margin is not None else {"arc": 0.5, "cos": 0.35}[kind]
    return ElasticFace(kind=kind, margin=mean, std=std, scale=scale, seed=seed)
