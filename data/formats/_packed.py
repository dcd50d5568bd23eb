"""Images inside larger files (zip, tar, LMDB): flat arrays say where each image lies."""

import functools
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.files import PreadFile, is_special
from data.formats._index_cache import Arrays, is_column, load_or_scan, within
from data.limits import MOST_IDENTITIES, MOST_IMAGE_BYTES
from data.names import LANDMARKS, SUFFIXES, LeftOut, is_hidden, say_left_out
from data.text import unescape_name
from data.types import Int64

OPEN_FILES = 256
LONGEST_LABEL = 9  # digits
Unwrap = Callable[[bytes, "PackedSet", int], bytes]


class PackedSet:
    """A FaceSet on shards.

    columns: arrays (N,) named shard, offset, size (bytes to read), key (checksums of the names in
        the archive) and labels, others that the format needs, and either `classes`, a number, or
        `names`, the identities' names (I,) as bytes.
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
        if names is None:
            return None
        return [unescape_name(os.fsdecode(bytes(name))) for name in names]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        columns = self.columns
        file = self._open(self.shards[columns["shard"][index]])
        offset, size = int(columns["offset"][index]), int(columns["size"][index])
        if size > MOST_IMAGE_BYTES:
            raise ValueError(
                f"{self.describe(index)}: an image of {size:,} bytes; "
                f"the limit is {MOST_IMAGE_BYTES:,}"
            )
        return self.unwrap(file.read(offset, size), self, index)

    def describe(self, index: int) -> str:
        shard, offset = self.columns["shard"][index], self.columns["offset"][index]
        return f"{self.shards[shard]} at byte {int(offset)}"

    @property
    def landmarks_file(self) -> str:
        """Beside the only shard, or in the folder of the shards."""
        return landmarks_beside(self.shards)

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        columns = self.columns
        return columns["key"], columns.get("length", columns["size"])

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSet, (self.shards, self.columns, self.unwrap)


def detect_shards(path: str, suffix: str) -> bool:
    """Whether the path is a file with that suffix or a folder that holds one."""
    return path.endswith(suffix) or (os.path.isdir(path) and bool(find_files(path, suffix)))


def find_files(folder: str | Path, suffix: str) -> list[str]:
    """The files `*suffix` of a folder in the order of their names, without hidden ones."""
    found = (file for file in Path(folder).glob(f"*{suffix}") if not is_hidden(file.name))
    return sorted(map(str, found))


def list_shards(path: str, suffix: str) -> list[str]:
    """The file itself, or all files `*suffix` of a folder in the order of their names."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if os.path.isfile(path):
        return [path]
    found = [file for file in find_files(path, suffix) if not is_special(file)]
    if not found:
        raise ValueError(f"{path}: holds no {suffix} file")
    return found


def landmarks_beside(shards: Sequence[str]) -> str:
    """The file that has the landmarks of a set of these files."""
    if len(shards) == 1:
        return f"{shards[0]}.{LANDMARKS}"
    return os.path.join(os.path.dirname(shards[0]), LANDMARKS)


def load_index(
    path: str,
    shards: list[str],
    scan: Callable[[], Arrays],
    *,
    own: tuple[str, ...] = (),
    lists: tuple[str, ...] = (),
) -> Arrays:
    """The columns of scan(), kept in an index file in the folder `path` or beside the file.

    own: the columns that the format needs besides those of PackedSet. lists: other files that were
    scanned.
    """
    beside = os.path.join(path, ".index.npz") if os.path.isdir(path) else f"{path}.index.npz"
    sizes = [os.path.getsize(shard) for shard in shards]
    columns = load_or_scan(
        beside, [*shards, *lists], scan, lambda columns: _columns_agree(columns, sizes, own)
    )
    if "left_out" in columns:
        say_left_out(path, os.fsdecode(columns["left_out"].item()))
    return columns


def _columns_agree(columns: Arrays, sizes: list[int], own: Sequence[str]) -> bool:
    """Whether columns are a PackedSet's: all images lie in the shards, and all labels are used."""
    if "key" not in columns:  # earlier versions wrote none
        return False
    shard, offset, size, labels = (columns[key] for key in ("shard", "offset", "size", "labels"))
    count = len(labels)
    if "left_out" in columns and not is_column(columns["left_out"], 1, "S"):
        return False
    if not count or not all(is_column(one, count, "i") for one in (shard, offset, size, labels)):
        return False
    if not all(is_column(columns[key], count) for key in ("key", *own)) or not within(
        shard, 0, len(sizes)
    ):
        return False
    ends = np.array(sizes, np.int64)[shard]
    inside = (offset >= 0) & (size >= 0) & (offset <= ends) & (size <= ends - offset)
    if "names" in columns:
        named = is_column(columns["names"], len(columns["names"]), "S")
        classes = len(columns["names"])
    else:
        named = columns["classes"].shape == () and columns["classes"].dtype.kind == "i"
        classes = int(columns["classes"]) if named else 0
    complete = classes == int(labels.max()) + 1 and within(labels, 0, MOST_IDENTITIES)
    return named and complete and bool(inside.all())


def label_of(digits: bytes, where: str) -> int:
    """A label from its text; ValueError unless it is a whole number below MOST_IDENTITIES."""
    short = digits.isdigit() and len(digits) <= LONGEST_LABEL
    if not short or int(digits) >= MOST_IDENTITIES:
        raise ValueError(
            f"{where}: found {digits[:40]!r}, expected a label of 0…{MOST_IDENTITIES - 1}"
        )
    return int(digits)


def bytes_column(texts: list[bytes], most: int, where: str) -> np.ndarray:
    """Texts (N,) as bytes of the width of the longest one.

    ValueError if that array were larger than `most` bytes, the size of the files that hold the
    texts: one long text would multiply what all the short ones need.
    """
    longest = max(map(len, texts), default=0)
    if longest * len(texts) > most:
        raise ValueError(
            f"{where}: a name of {longest} bytes among {len(texts)} is too long; the table of "
            f"names would have {longest * len(texts):,} bytes and the set has {most:,}"
        )
    return np.array(texts, np.bytes_)


def checksums(names: Iterable[bytes]) -> np.ndarray:
    """uint32 (N,): a key for each name."""
    return np.fromiter(map(zlib.crc32, names), np.uint32)


def number_folders(names: Iterable[bytes], folders: dict[bytes, int]) -> np.ndarray:
    """The numbers (N,) of the folders that hold the files with these names.

    folders: the number of each folder in the order of appearance; new ones are added.
    """
    parents = (name.rpartition(b"/")[0] for name in names)
    numbers = (folders.setdefault(parent, len(folders)) for parent in parents)
    return np.fromiter(numbers, np.int32)


def identity_columns(numbers: np.ndarray, folders: dict[bytes, int], shards: list[str]) -> Arrays:
    """Columns `labels` (N,) and `names` (I,) from the folder numbers (N,) of all images.

    Each folder is an identity. Labels follow the order of the folders' names.
    """
    names = bytes_column(list(folders), sum(map(os.path.getsize, shards)), shards[0])
    order = np.argsort(names, kind="stable")
    label_of_folder = np.empty(len(order), np.int32)
    label_of_folder[order] = np.arange(len(order), dtype=np.int32)
    return {"labels": label_of_folder[numbers], "names": names[order]}


def scan_shards(shards: list[str], scan: Callable[[str, LeftOut], Arrays]) -> Arrays:
    """scan(path) of all shards, joined, with the number of each image's shard as a column.

    `left_out`, bytes (1,), is the sentence about what the scans left out.
    """
    left_out = LeftOut()
    columns = [scan(path, left_out) for path in shards]
    joined = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    counts = [len(one["offset"]) for one in columns]
    if not sum(counts):
        raise ValueError(
            f"{shards[0]}: holds no image ({left_out.sentence() or ', '.join(SUFFIXES)})"
        )
    return {
        **joined,
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        "left_out": np.array([left_out.sentence().encode()]),
    }
