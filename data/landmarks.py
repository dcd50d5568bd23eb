"""Five landmarks per face, as shares of the side of the crop that shows it.

Shares are float32 (5,2), x before y: 0 is the outer edge of the crop's first pixels, and 1 that of
its last, so they stay the same when the crop is resized. The middle of pixel p of S is at (p+½)/S.
The points are the eyes, the nose tip and the corners of the mouth; those on the left side of the
image come first.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.align import TEMPLATE


def as_shares(points: ArrayLike, size: float) -> NDArray[np.float32]:
    """float32 (…,5,2): landmarks in pixels of a crop of `size` pixels as shares of its side."""
    return ((np.asarray(points, np.float64) + 0.5) / size).astype(np.float32)


TEMPLATE_SHARES = as_shares(TEMPLATE, 112)
"""Where an exactly aligned crop has its landmarks, float32 (5,2)."""
TEMPLATE_SHARES.setflags(write=False)
