"""Opens the set that a config trains on."""

from data.faces import open_faces, resolve_path
from data.types import FaceSet
from recognition.config import DataConfig


def open_training_set(data: DataConfig) -> FaceSet:
    """The faces of `data.train`, of which `data.subset` and `data.renumber` may change the labels.

    FileNotFoundError or ValueError says what can't be opened or trained on.
    """
    return open_faces(
        resolve_path(data.train, data.root),
        data.format,
        subset=resolve_path(data.subset, data.root) if data.subset else None,
        renumber=data.renumber,
    )
