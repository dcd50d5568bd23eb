"""One folder per identity: ROOT/NAME/IMAGE.jpg. Labels follow the order of the names."""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data.files import read_file
from data.limits import MOST_IMAGE_BYTES
from data.names import (
    DEEPER,
    LANDMARKS,
    OUTSIDE,
    SUFFIXES,
    LeftOut,
    is_hidden,
    list_folder,
    say_left_out,
)
from data.types import Int64

AT_ONCE, THREADS = 4096, 16  # files that are looked at by one thread in a row, and threads


class FolderSet:
    """A FaceSet on a folder of folders.

    File names are one array of bytes, because millions of Python objects would fill the memory.
    """

    def __init__(self, root: str, images: dict[str, list[bytes]]) -> None:
        self.root = root
        self.names = list(images)
        self.num_classes = len(images)
        self.files = np.array([file for files in images.values() for file in files], np.bytes_)
        counts = [len(files) for files in images.values()]
        self.labels: Int64 = np.repeat(np.arange(len(images)), counts)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return read_file(self.describe(index), MOST_IMAGE_BYTES)

    def describe(self, index: int) -> str:
        name, file = self.names[self.labels[index]], os.fsdecode(bytes(self.files[index]))
        return os.path.join(self.root, name, file)

    @property
    def landmarks_file(self) -> str:
        return os.path.join(self.root, LANDMARKS)

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Checksums of NAME/FILE, and the sizes that the file system has now.

        Nothing but a look at each file shows that it was overwritten, so sizes are not cached.
        """
        folders, root = [os.fsencode(name) for name in self.names], os.fsencode(self.root)

        def look(rows: range) -> tuple[list[int], list[int]]:
            labels, files = (column[rows.start : rows.stop] for column in (self.labels, self.files))
            paths = [
                folders[label] + b"/" + file
                for label, file in zip(labels.tolist(), files.tolist(), strict=True)
            ]
            sizes = [_size(os.path.join(root, path)) for path in paths]
            return list(map(zlib.crc32, paths)), sizes

        parts = [range(len(self))[at : at + AT_ONCE] for at in range(0, len(self), AT_ONCE)]
        # Threads wait for a network drive together.
        with ThreadPoolExecutor(THREADS) as executor:
            keys, sizes = zip(*executor.map(look, parts), strict=True)
        return np.concatenate(keys).astype(np.uint32), np.concatenate(sizes).astype(np.int64)


def _size(path: bytes) -> int:
    """Bytes of a file; -1 if it can't be found, which reading it will tell."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def detect(path: str) -> bool:
    """Whether the path is a folder in which a folder holds an image file."""
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        return any(
            entry.is_dir()
            and not is_hidden(entry.name)
            and bool(list_folder(entry.path, LeftOut())[0])
            for entry in entries
        )


def open_set(path: str) -> FolderSet:
    """Lists ROOT/NAME/IMAGE without opening an image; an identity without images is an error.

    What is left out, such as folders inside NAME, is logged.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such folder")
    left_out = LeftOut()
    outside, names = list_folder(path, left_out)
    if not names:
        raise ValueError(f"{path}: no folders in it; expected one per identity")
    for name in outside:
        left_out.add(OUTSIDE, os.path.join(path, name))
    images: dict[str, list[bytes]] = {}
    for name in sorted(names):
        files, deeper = list_folder(os.path.join(path, name), left_out)
        images[name] = sorted(map(os.fsencode, files))
        for one in deeper:
            left_out.add(DEEPER, os.path.join(path, name, one))
    say_left_out(path, left_out.sentence())
    empty = next((name for name, files in images.items() if not files), None)
    if empty is not None:
        folder = os.path.join(path, empty)
        raise ValueError(f"{folder}: holds no image ({', '.join(SUFFIXES)}); remove the folder")
    return FolderSet(path, images)
