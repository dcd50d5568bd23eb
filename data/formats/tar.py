"""WebDataset tar shards read in place: KEY.jpg with KEY.cls (its label as text); without .cls the
folder is the identity.

In one file or a folder of them; `.tar` only (a compressed tar cannot be read out of order). GNU and
pax long names.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from data.files import PreadFile
from data.formats._packed import PackedSet, indexed, is_shards, numbered, shards_of
from data.images import SUFFIXES

BLOCK = 512
LONGEST_NAME = 1 << 16
IMAGE_ENDS = tuple(suffix.encode() for suffix in SUFFIXES)


def detect(path: str) -> bool:
    return is_shards(path, ".tar")


def open_set(path: str) -> PackedSet:
    """Reads the headers of all members (once; then the index beside the shards)."""
    shards = shards_of(path, ".tar")
    return PackedSet(shards, indexed(path, shards, lambda: _scan(shards)), unwrap)


def unwrap(raw: bytes, faces: PackedSet, index: int) -> bytes:
    return raw


def _scan(shards: list[str]) -> dict[str, np.ndarray]:
    shard_of, offset_of, size_of, class_of, identity = (
        array("i"),
        array("q"),
        array("q"),
        array("q"),
        array("i"),
    )
    parents: dict[bytes, int] = {}
    for shard, path in enumerate(shards):
        file = PreadFile(path)
        classes: dict[bytes, int] = {}
        keys: list[bytes] = []
        for name, offset, size in members(file):
            key = _key(name)
            if name.endswith(b".cls"):
                text = file.read(offset, min(size, 32)).strip()
                if not text.isdigit() or key in classes:
                    raise ValueError(f"{path}: {name!r} holds {text!r}, expected one label, once")
                classes[key] = int(text)
            elif name.lower().endswith(IMAGE_ENDS):
                keys.append(key)
                identity.append(parents.setdefault(name.rpartition(b"/")[0], len(parents)))
                shard_of.append(shard)
                offset_of.append(offset)
                size_of.append(size)
        if classes:
            missing = next((key for key in keys if key not in classes), None)
            if missing is not None:
                raise ValueError(f"{path}: image {missing!r} has no .cls though others have")
            class_of.extend(classes[key] for key in keys)
    if not len(shard_of):
        raise ValueError(f"{shards[0]}: holds no image ({', '.join(SUFFIXES)})")
    columns: dict[str, np.ndarray] = {
        "shard": np.array(shard_of, np.int32),
        "offset": np.array(offset_of, np.int64),
        "size": np.array(size_of, np.int64),
    }
    if class_of:
        if len(class_of) != len(shard_of):
            raise ValueError(f"{shards[0]}: some shards have .cls labels and some have none")
        labels = np.array(class_of, np.int64)
        return {**columns, "labels": labels, "classes": np.array(labels.max() + 1)}
    if b"" in parents:
        raise ValueError(
            f"{shards[0]}: images have neither a .cls label nor a folder; expected KEY.jpg with KEY.cls"
        )
    labels, names = numbered(list(parents), np.array(identity, np.int32))
    return {**columns, "labels": labels, "names": names}


def _key(name: bytes) -> bytes:
    """WebDataset's sample key: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def members(file: PreadFile) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset, size) of each regular file in a tar."""
    at = 0
    long_name: bytes | None = None
    long_size: int | None = None
    while True:
        if at + BLOCK > file.size:
            raise ValueError(
                f"{file.path}: ends at byte {file.size} without an end mark; truncated"
            )
        header = file.read(at, BLOCK)
        if not header.strip(b"\0"):
            return
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise ValueError(f"{file.path}: no tar header at byte {at} (wrong checksum)")
        kind, size = header[156:157], _number(header[124:136])
        if long_size is not None and kind in b"07\0":
            size = long_size
        begin = at + BLOCK
        if size < 0 or begin + size > file.size:
            raise ValueError(f"{file.path}: member at byte {at} of {size} bytes is cut off")
        at = begin + size + -size % BLOCK
        if kind in b"Lx":
            if size > LONGEST_NAME:
                raise ValueError(f"{file.path}: long name of {size} bytes at {begin}")
            text = file.read(begin, size)
            if kind == b"L":
                long_name = text.rstrip(b"\0")
            else:
                records = _pax(text, file.path)
                long_name = records.get(b"path", long_name)
                long_size = (
                    int(records[b"size"]) if records.get(b"size", b"").isdigit() else long_size
                )
            continue
        if kind in b"07\0":
            prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
            name = header[:100].rstrip(b"\0")
            yield long_name or (prefix + b"/" + name if prefix else name), begin, size
        long_name = long_size = None


def _number(field: bytes) -> int:
    """Octal text, or base 256 where the top bit is set; −1 for neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.strip(b" \0")
    return int(text, 8) if text and not text.strip(b"01234567") else 0 if not text else -1


def _pax(text: bytes, path: str) -> dict[bytes, bytes]:
    records = {}
    while text.strip(b"\0"):
        length, _, rest = text.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(text):
            raise ValueError(f"{path}: broken pax header")
        key, _, value = text[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        records[key] = value
        text = text[int(length) :]
    return records
