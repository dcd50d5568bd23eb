"""Images inside larger files (zip, tar, LMDB): flat arrays say where each image lies."""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data.files import PreadFile
from data.formats._index_cache import Arrays, load_or_scan
from data.images import SUFFIXES
from data.types import Int64

OPEN_FILES = 256
LONGEST_LABEL = 9  # digits
IMAGE_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
Unwrap = Callable[[bytes, "PackedSet", int], bytes]


class PackedSet:
    """A FaceSet on shards.

    columns: arrays (N,) named shard, offset, size (bytes to read) and labels, others that the
        format needs, and either `classes`, a number, or `names`, the identities' names (I,) as
        bytes.
    unwrap: unwrap(raw, set, index) returns the image in the raw bytes. It is a module's function,
        so that the set can be pickled.

    At most OPEN_FILES shards are open at a time.
    """

    def __init__(self, shards: list[str], columns: Arrays, unwrap: Unwrap) -> None:
        self.shards = shards
        self.columns = columns
        self.unwrap = unwrap
        self.labels: Int64 = columns["labels"].astype(np.int64)
        classes = columns.get("classes")
        self.num_classes = len(columns["names"]) if classes is None else int(classes)
        self._open = functools.lru_cache(OPEN_FILES)(PreadFile)

    @property
    def names(self) -> list[str] | None:
        names = self.columns.get("names")
        return None if names is None else [os.fsdecode(bytes(name)) for name in names]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        columns = self.columns
        file = self._open(self.shards[columns["shard"][index]])
        raw = file.read(int(columns["offset"][index]), int(columns["size"][index]))
        return self.unwrap(raw, self, index)

    def describe(self, index: int) -> str:
        shard, offset = self.columns["shard"][index], self.columns["offset"][index]
        return f"{self.shards[shard]} at byte {int(offset)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSet, (self.shards, self.columns, self.unwrap)


def detect_shards(path: str, suffix: str) -> bool:
    """Whether the path is a file with that suffix or a folder that holds one."""
    return path.endswith(suffix) or (os.path.isdir(path) and any(Path(path).glob(f"*{suffix}")))


def list_shards(path: str, suffix: str) -> list[str]:
    """The file itself, or all files `*suffix` of a folder in the order of their names."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if os.path.isfile(path):
        return [path]
    found = sorted(str(file) for file in Path(path).glob(f"*{suffix}"))
    if not found:
        raise ValueError(f"{path}: holds no {suffix} file")
    return found


def load_index(path: str, sources: list[str], scan: Callable[[], Arrays]) -> Arrays:
    """The columns of scan(), kept in an index file in the folder `path` or beside the file."""
    beside = os.path.join(path, ".index.npz") if os.path.isdir(path) else f"{path}.index.npz"
    return load_or_scan(beside, sources, scan)


def number_folders(names: Iterable[bytes], folders: dict[bytes, int]) -> np.ndarray:
    """The numbers (N,) of the folders that hold the files with these names.

    folders: the number of each folder in the order of appearance; new ones are added.
    """
    parents = (name.rpartition(b"/")[0] for name in names)
    numbers = (folders.setdefault(parent, len(folders)) for parent in parents)
    return np.fromiter(numbers, np.int32)


def identity_columns(numbers: np.ndarray, folders: dict[bytes, int]) -> Arrays:
    """Columns `labels` (N,) and `names` (I,) from the folder numbers (N,) of all images.

    Each folder is an identity. Labels follow the order of the folders' names.
    """
    names = np.array(list(folders), np.bytes_)
    order = np.argsort(names, kind="stable")
    label_of_folder = np.empty(len(order), np.int32)
    label_of_folder[order] = np.arange(len(order), dtype=np.int32)
    return {"labels": label_of_folder[numbers], "names": names[order]}


def scan_shards(shards: list[str], scan: Callable[[str], Arrays]) -> Arrays:
    """scan(path) of all shards, joined, with the number of each image's shard as a column."""
    columns = [scan(path) for path in shards]
    joined = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    counts = [len(one["offset"]) for one in columns]
    if not sum(counts):
        raise ValueError(f"{shards[0]}: holds no image ({', '.join(SUFFIXES)})")
    return {**joined, "shard": np.repeat(np.arange(len(shards), dtype=np.int32), counts)}
