"""The two types that all parts share: a set of face images on disk, and a batch in memory."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data.images import Images

Int64 = NDArray[np.int64]
Pixels = NDArray[np.uint8]


class FaceSet(Images, Protocol):
    """Encoded face images with their identities.

    Reading changes no state, so threads and forked or spawned workers may share a set.

    labels: int64 (N,), each in [0, num_classes).
    num_classes: number of identities that the set declares.
    """

    labels: Int64
    num_classes: int


@dataclass(frozen=True)
class Batch:
    """Images and labels on the device of the run.

    images: uint8 (B,3,H,W) RGB, in channels_last layout, as they were decoded. labels: int64 (B,).
    sample: what the loader's `draw` gave for the optimizer step that begins with this batch, int64.
    None in the step's other batches, and where a loader draws nothing. indices: int64 (B,), the
    numbers of the images in the set, on the CPU; that of a stand-in is its own. None for a batch
    that no loader made. landmarks: float32 (B,5,2) on the CPU, those of the images before
    augmentation (data/landmarks.py); None unless the loader was given some.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample: torch.Tensor | None = None
    indices: Int64 | None = field(default=None, kw_only=True)
    landmarks: torch.Tensor | None = field(default=None, kw_only=True)
