"""Landmarks on their way to a backbone that needs them."""

from collections.abc import Callable

import torch
from torch import nn

from data.augment import Augment, augment_landmarks
from data.landmarks import Landmarks, needed_landmarks
from data.to_device import to_device
from data.types import Batch, FaceSet
from recognition.backbones import needs_landmarks

Forward = Callable[..., torch.Tensor]


def training_landmarks(backbone: nn.Module, faces: FaceSet) -> Landmarks | None:
    """What a loader's batches have to carry. ValueError if `faces` has too few landmarks."""
    return needed_landmarks(faces) if needs_landmarks(backbone) else None


def with_landmarks(forward: Forward, batch: Batch, options: Augment, seed: int) -> Forward:
    """`forward`, which gets the landmarks of a batch, moved as `augment` moves its images.

    The images that it is called with are the first ones of the batch, or all of them. A batch
    without landmarks changes nothing.
    """
    if batch.landmarks is None:
        return forward
    moved = augment_landmarks(batch.landmarks, options, seed, batch.images.shape[-1])
    points = to_device(moved, batch.images.device)
    return lambda images: forward(images, points[: len(images)])
