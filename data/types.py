"""The two types that every part shares: a set of face images on disk, and a batch of them in
memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


class FaceSet(Protocol):
    """Encoded face images with identities. State-free to read: safe from threads and from forked or
    spawned workers.

    labels: int64 (N,), each in [0, num_classes). num_classes: number of identities declared by the
    set.
    """

    labels: np.ndarray
    num_classes: int

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Encoded bytes (JPEG, PNG, ...) of image `index`; errors name the file and the key."""
        ...

    def describe(self, index: int) -> str:
        """Where image `index` lives, for messages: file and key."""
        ...


@dataclass(frozen=True)
class Batch:
    """images: uint8 (B,3,H,W) RGB on the run's device, laid out as decoded, channels last. labels: int64 (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
