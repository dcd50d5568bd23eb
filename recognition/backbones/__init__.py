"""Backbones: one file per family; each exports `build(…) -> nn.Module` from (B,3,H,W) to (B,D).

A file whose published weights can be loaded also exports two things. `MARK` is the name of a
parameter that no other backbone has. `recognize` gives the options of `build`, and the size of the
input, for the shapes of all parameters; it may raise KeyError or ValueError for other shapes. A
file whose networks have the mark of another backbone, too, names that backbone in `CONTAINS`.

A file whose networks can start from weights of another kind has the option `weights`, and exports
`load_pretrained(backbone, weights, options, size)`. Only a new run calls it; it returns a line for
the log.

A network with the attribute `needs_landmarks` takes a second tensor, (B,5,2): the landmarks of the
faces as data/landmarks.py describes them. Without them it raises ValueError if the attribute is
true.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor in a state dict, by name."""
Recognized = tuple[dict[str, Any], int]
"""Options of `build`, and the side of the input in pixels."""
USUAL_SIZE = 112
"""Side of the input of nearly all published networks, in pixels."""


def embedding_of(backbone: nn.Module) -> int:
    """D of a backbone, which every backbone has as its attribute `embedding`."""
    embedding = getattr(backbone, "embedding", None)
    if not isinstance(embedding, int):
        raise ValueError(
            f"{type(backbone).__name__}.embedding is {embedding!r}: expected the number of outputs"
        )
    return embedding


def needs_landmarks(backbone: nn.Module) -> bool:
    """Whether each call has to give the landmarks of its images."""
    return bool(getattr(backbone, "needs_landmarks", False))


def size_of_map(cells: int) -> int:
    """Side of the input of a network that halves it four times, from the cells of its last map."""
    side = math.isqrt(cells)
    if side == 0 or side * side != cells:
        raise ValueError(f"the last map has {cells} cells, which form no square")
    return USUAL_SIZE if side == -(-USUAL_SIZE // 16) else 16 * side
