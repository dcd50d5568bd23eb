"""Images inside larger files (zip, tar, LMDB), as flat arrays of where each one lies."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.files import PreadFile
from data.formats._index_cache import cached

OPEN_FILES = 256
Unwrap = Callable[[bytes, "PackedSet", int], bytes]


class PackedSet:
    """A FaceSet on shards. Arrays (N,): shard, offset, size of the bytes to read, labels; further
    columns as the format needs.

    unwrap(raw, set, index) makes the image of the raw bytes: a module's function, so that the set
    pickles. names: identity names (I,) as bytes. At most OPEN_FILES shards are open at a time.
    """

    def __init__(self, shards: list[str], columns: dict[str, np.ndarray], unwrap: Unwrap) -> None:
        self.shards = shards
        self.columns = columns
        self.unwrap = unwrap
        self.labels = columns["labels"].astype(np.int64)
        self.num_classes = (
            int(columns["classes"]) if "classes" in columns else len(columns["names"])
        )
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
        return f"{self.shards[self.columns['shard'][index]]} at byte {int(self.columns['offset'][index])}"

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSet, (self.shards, self.columns, self.unwrap)


def shards_of(path: str, suffix: str) -> list[str]:
    """The file itself, or all files `*suffix` of a folder in the order of their names."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if os.path.isfile(path):
        return [path]
    found = sorted(str(file) for file in Path(path).glob(f"*{suffix}"))
    if not found:
        raise ValueError(f"{path}: holds no {suffix} file")
    return found


def is_shards(path: str, suffix: str) -> bool:
    """Whether the path is a file of that suffix or a folder that holds one."""
    return path.endswith(suffix) or (os.path.isdir(path) and any(Path(path).glob(f"*{suffix}")))


def indexed(
    path: str, shards: list[str], scan: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """scan() of the shards, kept in an index file beside them."""
    beside = os.path.join(path, ".index.npz") if os.path.isdir(path) else f"{path}.index.npz"
    return cached(beside, shards, scan)


def numbered(parents: list[bytes], first_seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(labels (N,), names (I,)) from identity numbers in order of appearance (N,): numbers them in
    the order of names.
    """
    names = np.array(parents, np.bytes_)
    order = np.argsort(names, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[first_seen], names[order]
