"""WebDataset tar shards read in place: KEY.jpg with its label as text in KEY.cls.

A set is one tar file or a folder of them. Without .cls files the folder inside the archive is the
identity; with them it is the identity's name, if each has one folder. GNU and pax long names are
understood. Compressed archives are not: their members cannot be read out of order.
"""

import os
from collections.abc import Iterator

import numpy as np

from data.files import PreadFile
from data.formats._index_cache import Arrays
from data.formats._packed import (
    PackedSet,
    bytes_column,
    checksums,
    detect_shards,
    identity_columns,
    label_of,
    list_shards,
    load_index,
    number_folders,
    scan_shards,
)
from data.names import NO_FILE, SUFFIX, LeftOut, is_image, member_path

BLOCK = 512
LONGEST_NAME = 1 << 16
LONGEST_NUMBER = 20  # digits
REGULAR, LINKS, LONG_NAME, PAX = b"07\0", b"12", b"L", b"x"  # kinds of members
NO_LABEL = -1


def detect(path: str) -> bool:
    return detect_shards(path, ".tar")


def open_set(path: str) -> PackedSet:
    """Reads the headers of all members the first time, and the index beside the shards later."""
    shards = list_shards(path, ".tar")
    return PackedSet(shards, load_index(path, shards, lambda: _scan(shards)), unwrap)


def unwrap(raw: bytes, faces: PackedSet, index: int) -> bytes:
    """The image itself: tar stores its members as they are."""
    return raw


def _scan(shards: list[str]) -> Arrays:
    folders: dict[bytes, int] = {}
    columns = scan_shards(shards, lambda path, left_out: _scan_shard(path, folders, left_out))
    folder, labels = columns.pop("folder"), columns["labels"]
    labeled = labels != NO_LABEL
    if labeled.all():
        return {**columns, **_names_of_labels(labels, folder, folders, shards)}
    if labeled.any():
        raise ValueError(f"{shards[0]}: some shards have .cls labels and some have none")
    if b"" in folders:
        raise ValueError(
            f"{shards[0]}: images have neither a .cls label nor a folder; "
            "expected KEY.jpg with KEY.cls"
        )
    return {**columns, **identity_columns(folder, folders, shards)}


def _names_of_labels(
    labels: np.ndarray, folder: np.ndarray, folders: dict[bytes, int], shards: list[str]
) -> Arrays:
    """`names` (I,) of the labels if each label has one folder and each folder one, else `classes`.

    labels, folder: those of all images, (N,).
    """
    classes = int(labels.max()) + 1
    pairs = np.unique(np.stack([labels, folder], 1), axis=0)
    one_each = len(pairs) == len(folders) == classes and (np.diff(pairs[:, 0]) == 1).all()
    if not one_each or b"" in folders:
        return {"classes": np.array(classes, np.int64)}
    names = bytes_column(list(folders), sum(map(os.path.getsize, shards)), shards[0])
    return {"names": names[pairs[:, 1]]}


def _scan_shard(path: str, folders: dict[bytes, int], left_out: LeftOut) -> Arrays:
    """Columns offset, size, labels (NO_LABEL without .cls files) and folder of one archive."""
    file = PreadFile(path)
    labels: dict[bytes, int] = {}
    images: list[tuple[bytes, int, int]] = []
    for raw, offset, size in members(file):
        name = member_path(raw)
        if name is None:
            continue
        if offset < 0:
            left_out.add(NO_FILE, os.fsdecode(name))
        elif name.endswith(b".cls"):
            if _key(name) in labels:
                raise ValueError(f"{path}: {name!r} is there twice, expected one label, once")
            text = file.read(offset, min(size, 32)).strip()
            labels[_key(name)] = label_of(text, f"{path}: {name!r}")
        elif is_image(os.fsdecode(name)):
            images.append((name, offset, size))
        else:
            left_out.add(SUFFIX, os.fsdecode(name))
    missing = next((name for name, _, _ in images if labels and _key(name) not in labels), None)
    if missing is not None:
        raise ValueError(f"{path}: image {missing!r} has no .cls though others have")
    return {
        "offset": np.array([offset for _, offset, _ in images], np.int64),
        "size": np.array([size for _, _, size in images], np.int64),
        "labels": np.array([labels.get(_key(name), NO_LABEL) for name, _, _ in images], np.int64),
        "folder": number_folders((name for name, _, _ in images), folders),
        "key": checksums(name for name, _, _ in images),
    }


def _key(name: bytes) -> bytes:
    """WebDataset's sample key: the name up to the first dot after its folder."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def members(file: PreadFile) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset, size) of each regular file in a tar; a link has the offset -1.

    tarfile would take 2.8 times as long (3.6 s for 100,000 images with labels), and it ends without
    an error at the place where a file is truncated.
    """
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
        # The checksum adds up all bytes of the header, with blanks in place of its own eight.
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise ValueError(f"{file.path}: no tar header at byte {at} (wrong checksum)")
        kind, size = header[156:157], _number(header[124:136])
        if long_size is not None and kind in REGULAR:
            size = long_size
        begin = at + BLOCK
        if size < 0 or begin + size > file.size:
            raise ValueError(f"{file.path}: member at byte {at} of {size} bytes is cut off")
        at = begin + size + -size % BLOCK

        # A member of one of these two kinds describes the member that follows.
        if kind in (LONG_NAME, PAX):
            if size > LONGEST_NAME:
                raise ValueError(f"{file.path}: long name of {size} bytes at {begin}")
            text = file.read(begin, size)
            if kind == LONG_NAME:
                long_name = text.rstrip(b"\0")
                continue
            records = _pax_records(text, file.path)
            long_name = records.get(b"path", long_name)
            if records.get(b"size", b"").isdigit():
                long_size = int(records[b"size"][:LONGEST_NUMBER])
            continue
        if kind in REGULAR or kind in LINKS:
            yield long_name or _short_name(header), begin if kind in REGULAR else -1, size
        long_name = long_size = None


def _short_name(header: bytes) -> bytes:
    """The name in a header, with ustar's prefix where the header has one."""
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int:
    """A number as octal text, or in base 256 if the top bit is set; -1 if it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.strip(b" \0")
    if text.strip(b"01234567"):
        return -1
    return int(text or b"0", 8)


def _pax_records(text: bytes, path: str) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE` of a pax header; LENGTH counts the whole record."""
    records = {}
    while text.strip(b"\0"):
        length = text.partition(b" ")[0]
        short = length.isdigit() and len(length) < LONGEST_NUMBER
        if not short or not len(length) < int(length) <= len(text):
            raise ValueError(f"{path}: broken pax header")
        key, _, value = text[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        records[key] = value
        text = text[int(length) :]
    return records
