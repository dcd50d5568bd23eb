"""Several sets as one: `concat:PATH;PATH;…`. Labels of a set follow those of the set before it."""

import numpy as np

from data.faces import CHOSEN, JOINED, check_range, open_faces
from data.fingerprint import keys_and_sizes
from data.landmarks import Landmarks, landmarks_of
from data.order import Blocks
from data.types import FaceSet, Int64

BLOCK = 256  # images


class ConcatSet:
    """A FaceSet of FaceSets. The same person in two sets counts as two identities."""

    def __init__(self, sets: list[FaceSet]) -> None:
        self.sets = sets
        self.starts = np.cumsum([0, *(len(faces) for faces in sets)])
        first_labels = np.cumsum([0, *(faces.num_classes for faces in sets)])
        self.labels: Int64 = np.concatenate(
            [faces.labels + first for faces, first in zip(sets, first_labels, strict=False)]
        )
        self.num_classes = int(first_labels[-1])

    @property
    def names(self) -> list[str] | None:
        """The names of all identities, if every set has names."""
        names = [getattr(faces, "names", None) for faces in self.sets]
        return None if None in names else [name for some in names if some for name in some]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        faces, own = self._place(index)
        return faces.read(own)

    def describe(self, index: int) -> str:
        faces, own = self._place(index)
        return faces.describe(own)

    def landmarks(self) -> Landmarks | None:
        """Those of all sets; NaN for a set without."""
        found = [landmarks_of(faces) for faces in self.sets]
        if all(points is None for points in found):
            return None
        return np.concatenate(
            [
                np.full((len(faces), 5, 2), np.nan, np.float32) if points is None else points
                for faces, points in zip(self.sets, found, strict=True)
            ]
        )

    @property
    def blocks(self) -> Blocks | None:
        """Those of all sets, if one has some; a set without blocks is cut into small ones."""
        found = [getattr(faces, "blocks", None) for faces in self.sets]
        known = [blocks for blocks in found if blocks is not None]
        if not known:
            return None
        starts = [
            first + (np.arange(0, len(faces), BLOCK) if blocks is None else blocks.starts)
            for faces, blocks, first in zip(self.sets, found, self.starts, strict=False)
        ]
        return Blocks(np.concatenate(starts), min(blocks.mixed for blocks in known))

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        keys, sizes = zip(*(keys_and_sizes(faces) for faces in self.sets), strict=True)
        return np.concatenate(keys), np.concatenate(sizes)

    def _place(self, index: int) -> tuple[FaceSet, int]:
        """The set that holds image `index`, and the image's index there."""
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sets[which], index - int(self.starts[which])


def detect(path: str) -> bool:
    return path.startswith(JOINED)


def open_set(path: str) -> ConcatSet:
    """Opens each set by its own detected format."""
    paths: list[str] = []
    for one in path.removeprefix(JOINED).split(";"):
        if paths and paths[-1].startswith(CHOSEN) and ";" not in paths[-1]:
            paths[-1] += f";{one}"  # the set of `subset:FILE.npy;PATH`
        elif one:
            paths.append(one)
    if len(paths) < 2:
        raise ValueError(f"{path}: expected two paths or more, as {JOINED}PATH;PATH")
    sets = [open_faces(one, check=False) for one in paths]
    for faces, one in zip(sets, paths, strict=True):
        check_range(faces.labels, faces.num_classes, one)  # or people would mix
    return ConcatSet(sets)
