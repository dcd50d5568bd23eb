"""Sides of the input over a run: smaller images first, the full size at the end.

A step on smaller images costs less, and early steps need the details less (arXiv 2405.08768).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data.steps import Steps


@dataclass(frozen=True)
class SizeSchedule:
    """The side of the input at each place of a run (see data/steps.py).

    full: the side at the end, in pixels. shares: smaller sides, in pixels, and the share of the
    run's planned steps that have each of them; they come in ascending order. epochs: those of the
    run.
    """

    full: int
    shares: Mapping[int, float] = field(default_factory=dict)
    epochs: int = 1

    def at(self, place: int, steps: Steps) -> int:
        """The side of the images in the step that begins at `place`, in pixels."""
        total, end = steps.planned_per_epoch * self.epochs, 0.0
        for size, share in sorted(self.shares.items()):
            end += share * total
            if place // steps.planned < round(end):
                return size
        return self.full
