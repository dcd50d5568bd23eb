"""Types of options, with their ranges: what a config key or an option of a part may hold.

`scale: Positive = 64.0` in a dataclass or in a `build` says that 0 is refused, and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Bounds of a finite number; None means no bound. `above` and `below` exclude the bound itself."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Whether the number lies within all bounds; NaN and infinities never do."""
        return (
            abs(number) < float("inf")
            and (self.at_least is None or number >= self.at_least)
            and (self.at_most is None or number <= self.at_most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        bounds = (
            ("at least", self.at_least),
            ("more than", self.above),
            ("at most", self.at_most),
            ("less than", self.below),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
"""A probability or a part of a whole, 0 to 1."""
ShareBelowOne = Annotated[float, Range(at_least=0, below=1)]
Count = Annotated[int, Range(at_least=1)]
CountOrZero = Annotated[int, Range(at_least=0)]
PathText = Annotated[str, "path"]
"""A path as a config writes it: a relative one starts at `data.root`."""
