"""A folder per identity: ROOT/NAME/IMAGE.jpg. Identities are numbered in the order of their
names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data.images import SUFFIXES


class FolderSet:
    """A FaceSet on a folder of folders. File names are held as one bytes array, not as Python
    objects."""

    def __init__(self, root: str, names: list[str], files: np.ndarray, labels: np.ndarray) -> None:
        self.root = root
        self.names = names
        self.files = files
        self.labels = labels
        self.num_classes = len(names)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return Path(self.describe(index)).read_bytes()

    def describe(self, index: int) -> str:
        return os.path.join(
            self.root, self.names[self.labels[index]], os.fsdecode(bytes(self.files[index]))
        )


def detect(path: str) -> bool:
    """A folder with a folder in it that holds an image file."""
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        return any(entry.is_dir() and _images(entry.path) for entry in entries)


def open_set(path: str) -> FolderSet:
    """Lists ROOT/NAME/IMAGE; names an identity without images. Opening lists folders only, it opens
    no image."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such folder")
    with os.scandir(path) as entries:
        names = sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )
    if not names:
        raise ValueError(f"{path}: no folders in it; expected one per identity")
    files: list[bytes] = []
    counts = np.zeros(len(names), np.int64)
    for label, name in enumerate(names):
        images = _images(os.path.join(path, name))
        if not images:
            raise ValueError(
                f"{os.path.join(path, name)}: holds no image ({', '.join(SUFFIXES)}); remove the folder"
            )
        files += images
        counts[label] = len(images)
    return FolderSet(
        path, names, np.array(files, np.bytes_), np.repeat(np.arange(len(names)), counts)
    )


def _images(folder: str) -> list[bytes]:
    with os.scandir(folder) as entries:
        return sorted(
            os.fsencode(entry.name) for entry in entries if entry.name.lower().endswith(SUFFIXES)
        )
