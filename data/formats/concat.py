"""Several sets as one: `concat:PATH;PATH;…`, identities of each numbered behind those of the one
before."""

from __future__ import annotations

import numpy as np

from data.faces import JOINED, open_faces
from data.types import FaceSet


class ConcatSet:
    """A FaceSet of FaceSets. The same person in two sets counts as two identities."""

    def __init__(self, sets: list[FaceSet]) -> None:
        self.sets = sets
        self.starts = np.cumsum([0, *(len(faces) for faces in sets)])
        offsets = np.cumsum([0, *(faces.num_classes for faces in sets)])
        self.labels = np.concatenate(
            [faces.labels + offset for faces, offset in zip(sets, offsets, strict=False)]
        )
        self.num_classes = int(offsets[-1])

    def __len__(self) -> int:
        return len(self.labels)

    def _place(self, index: int) -> tuple[FaceSet, int]:
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sets[which], index - int(self.starts[which])

    def read(self, index: int) -> bytes:
        faces, own = self._place(index)
        return faces.read(own)

    def describe(self, index: int) -> str:
        faces, own = self._place(index)
        return faces.describe(own)


def detect(path: str) -> bool:
    return path.startswith(JOINED)


def open_set(path: str) -> ConcatSet:
    """Opens each part by its own detected format."""
    parts = [part for part in path.removeprefix(JOINED).split(";") if part]
    if len(parts) < 2:
        raise ValueError(f"{path}: expected two paths or more, as {JOINED}PATH;PATH")
    return ConcatSet([open_faces(part, check=False) for part in parts])
