"""SST's gallery queue (arXiv 2007.08398, section 3): features that stand for classes, in turn.

The queue is made of tensors on the training device. New features replace the oldest ones, and
nothing waits for the device.
"""

import torch
from torch import nn
from torch.nn import functional as F

from recognition.classifiers._gallery import Changes, Index, put_back_unless
from recognition.classifiers._rows import initial_centers


class GalleryQueue(nn.Module):
    """`size` (S) features of length 1, with the identities that they show.

    It starts with random directions, which belong to nobody and count as classes until they are
    replaced (as in the released code).

    These buffers are its state:
        features float32 (S, D).
        identities int32 (S,): whom a feature shows, -1 for nobody.
        cursor int64 (): the place that is written next.
    """

    features: torch.Tensor
    identities: torch.Tensor
    cursor: torch.Tensor

    def __init__(self, size: int, embedding: int, *, seed: int) -> None:
        super().__init__()
        self.size = size
        start = F.normalize(initial_centers(range(size), embedding, seed=seed))
        self.register_buffer("features", start)
        self.register_buffer("identities", torch.full((size,), -1, dtype=torch.int32))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def next_places(self, count: int) -> torch.Tensor:
        """(count,) int64, at most `size`: the places of the oldest features, oldest first."""
        offsets = torch.arange(count, device=self.cursor.device)
        return (self.cursor + offsets) % self.size

    def all_but(self, places: torch.Tensor) -> torch.Tensor:
        """(S,) bool: False at `places`."""
        # Not by `others[places] = False`, which copies the number to a GPU and waits for it.
        return torch.ones_like(self.identities, dtype=torch.bool).index_fill_(0, places, False)

    def push(self, labels: torch.Tensor, features: torch.Tensor) -> Changes:
        """Put features (G,D) of identities `labels` (G,) in the place of the oldest ones.

        Returns what `undo_unless` needs.
        """
        place: Index = (self.next_places(len(labels)),)
        changes = [(tensor, place, tensor[place]) for tensor in (self.features, self.identities)]
        self.features[place] = features
        self.identities[place] = labels.to(self.identities.dtype)
        self.cursor.add_(len(labels)).remainder_(self.size)
        return changes

    def undo_unless(self, taken: torch.Tensor, changes: Changes) -> None:
        """Take back the last push, which returned `changes`, where `taken` (scalar) is False."""
        put_back_unless(taken, changes)
        pushed = len(changes[0][2])
        self.cursor.sub_(torch.where(taken, 0, pushed)).remainder_(self.size)
