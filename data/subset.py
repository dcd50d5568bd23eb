"""Some images of a set, or all of them under other labels, without a copy of the images."""

from dataclasses import replace

import numpy as np

from data.fingerprint import keys_and_sizes
from data.landmarks import Landmarks, landmarks_of
from data.limits import MOST_IDENTITIES
from data.order import Blocks
from data.types import FaceSet, Int64

LABEL = f"label {{}}, expected 0…{MOST_IDENTITIES - 1}"


class SubsetSet:
    """A FaceSet of the images `rows` (N,) of another set, which have the labels given here.

    original_labels: int64 (num_classes,), the label that each identity has in `faces`; None where
        labels were kept or given anew.
    names: names of the identities, if `faces` has them and the labels were not given anew.
    """

    def __init__(
        self,
        faces: FaceSet,
        rows: np.ndarray,
        labels: Int64,
        num_classes: int,
        *,
        names: list[str] | None = None,
        original_labels: Int64 | None = None,
    ) -> None:
        self.faces = faces
        self.rows = rows
        self.labels = labels
        self.num_classes = num_classes
        self.names = names
        self.original_labels = original_labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self.faces.read(int(self.rows[index]))

    def describe(self, index: int) -> str:
        return self.faces.describe(int(self.rows[index]))

    def landmarks(self) -> Landmarks | None:
        """Those of `faces`, of the chosen images."""
        found = landmarks_of(self.faces)
        return None if found is None else found[self.rows]

    @property
    def blocks(self) -> Blocks | None:
        """Those of `faces` that hold images of this set."""
        blocks: Blocks | None = getattr(self.faces, "blocks", None)
        if blocks is None:
            return None
        starts = np.unique(np.searchsorted(self.rows, blocks.starts))
        return replace(blocks, starts=starts[starts < len(self)])

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        keys, sizes = keys_and_sizes(self.faces)
        return keys[self.rows], sizes[self.rows]


def choose(faces: FaceSet, table: np.ndarray, where: str) -> SubsetSet:
    """The images of `faces` that an index list names, in the order of their rows.

    table: row numbers (M,), or (M, 2) row numbers and new labels. where: the list, for errors. The
    labels that are kept keep their number of identities.

    Raises ValueError for a table that is not one of `faces`.
    """
    wide = table.ndim == 2 and table.shape[1] == 2
    if table.dtype.kind not in "iu" or not (table.ndim == 1 or wide) or not len(table):
        raise ValueError(
            f"{where}: found {table.dtype} {table.shape}, expected whole numbers: rows (M,), or "
            "rows and new labels (M, 2)"
        )
    rows = table[:, 0] if wide else table
    _check_within(rows, len(faces), where, f"row {{}}, but the set has {len(faces)} images")
    order = np.argsort(rows, kind="stable")
    rows = rows[order].astype(np.int64)
    if not wide:
        names = getattr(faces, "names", None)
        return SubsetSet(faces, rows, faces.labels[rows], faces.num_classes, names=names)
    labels = table[order, 1]
    _check_within(labels, MOST_IDENTITIES, where, LABEL)
    return SubsetSet(faces, rows, labels.astype(np.int64), int(labels.max()) + 1)


def renumber(faces: FaceSet, where: str) -> FaceSet:
    """The set with its identities that have images numbered 0, 1, … in the order of their labels.

    A set without a gap stays as it is. ValueError for a negative label.
    """
    if not len(faces):
        return faces
    _check_within(faces.labels, MOST_IDENTITIES, where, LABEL)
    held = np.bincount(faces.labels) > 0
    if len(held) == faces.num_classes and held.all():
        return faces
    kept, names = np.flatnonzero(held), getattr(faces, "names", None)
    if names is not None and len(names) < len(held):  # `property` declares fewer than there are
        names = None
    return SubsetSet(
        faces,
        np.arange(len(faces)),
        (np.cumsum(held) - 1)[faces.labels],
        len(kept),
        names=None if names is None else [names[label] for label in kept.tolist()],
        original_labels=kept.astype(np.int64),
    )


def _check_within(numbers: np.ndarray, most: int, where: str, told: str) -> None:
    """ValueError unless all numbers are 0…most - 1. told: the message, with {} for the number."""
    for extreme in (int(numbers.min()), int(numbers.max())):
        if not 0 <= extreme < most:
            raise ValueError(f"{where}: {told.format(extreme)}")
