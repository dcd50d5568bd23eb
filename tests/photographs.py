"""Photographs in the public domain, which scikit-image ships."""

from typing import Any

import numpy as np
from skimage import data

from data.types import Pixels


def photograph(name: str) -> Pixels:
    """uint8 (H,W,3): "astronaut" shows one face, "coffee", "rocket" and "chelsea" (a cat) none."""
    load: Any = getattr(data, name)
    image: Pixels = np.array(load(), np.uint8)
    return image
