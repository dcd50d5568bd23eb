"""One folder per identity: ROOT/NAME/IMAGE.jpg. Labels follow the order of the names."""

import logging
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data.files import is_special, read_file
from data.images import SUFFIXES
from data.limits import MOST_IMAGE_BYTES
from data.text import one_line
from data.types import Int64

log = logging.getLogger(__name__)
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
        return any(entry.is_dir() and _list_images(entry.path)[0] for entry in entries)


def open_set(path: str) -> FolderSet:
    """Lists ROOT/NAME/IMAGE without opening an image; an identity without images is an error."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such folder")
    with os.scandir(path) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    names = sorted(name for name in folders if not name.startswith("."))
    if not names:
        raise ValueError(f"{path}: no folders in it; expected one per identity")
    images: dict[str, list[bytes]] = {}
    for name in names:
        folder = os.path.join(path, name)
        images[name], special = _list_images(folder)
        if special:
            log.warning(
                "%s: %d FIFOs, sockets or devices are no images, the first is %r",
                one_line(folder),
                len(special),
                special[0],
            )
    empty = next((name for name in names if not images[name]), None)
    if empty is not None:
        folder = os.path.join(path, empty)
        raise ValueError(f"{folder}: holds no image ({', '.join(SUFFIXES)}); remove the folder")
    return FolderSet(path, images)


def _list_images(folder: str) -> tuple[list[bytes], list[str]]:
    """The names of a folder's images, and of FIFOs, sockets and devices named like images."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name.lower().endswith(SUFFIXES)]
    # The listing itself says which entries are ordinary files; only others are looked up.
    others = [one for one in found if not one.is_file(follow_symlinks=False)]
    special = {one.name for one in others if not one.is_symlink() and is_special(one.path)}
    images = [os.fsencode(one.name) for one in found if one.name not in special]
    return sorted(images), sorted(special)
