"""LMDB as F²C's public code writes it: `data.mdb` with `*_kv.txt` beside it, lines `KEY LABEL`;
values protobuf Datum or images.

Read by walking the B-tree once (LMDB 0.9's file format, 64-bit) and keeping where each value lies,
not through liblmdb: that maps the file, and a broken one would end the process instead of raising
an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from data.files import PreadFile
from data.formats._packed import PackedSet, indexed

MAGIC = 0xBEEFC0DE
PAGE = struct.Struct("<Q4H")  # page number, pad, flags, lower, upper
NODE = struct.Struct("<4H")  # low and high half of size or page, flags, key size
BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG, SUB, DUPLICATES = 1, 2, 4
DEEPEST = 32
EMPTY = 2**64 - 1
ROWS_AT_ONCE = 1 << 16
LONGEST_LABEL = 9  # digits


def detect(path: str) -> bool:
    return path.endswith(".mdb") or (Path(path) / "data.mdb").is_file()


def open_set(path: str) -> PackedSet:
    """Opens a folder with data.mdb and one *_kv.txt (or the .mdb file itself)."""
    mdb = Path(path) if path.endswith(".mdb") else Path(path) / "data.mdb"
    if not mdb.is_file():
        raise FileNotFoundError(f"{mdb}: no such file")
    lists = sorted(mdb.parent.glob("*kv.txt"))
    if len(lists) != 1:
        raise ValueError(
            f"{mdb.parent}: expected one list of keys and labels, *_kv.txt, but found {len(lists)}"
        )
    columns = indexed(str(mdb), [str(mdb), str(lists[0])], lambda: _scan(str(mdb), lists[0]))
    return PackedSet([str(mdb)], columns, unwrap)


def unwrap(raw: bytes, faces: PackedSet, index: int) -> bytes:
    """The bytes field 1 of a Datum message, or the value itself where it is none."""
    if raw[:1] != b"\x0a":
        return raw
    length, at = 0, 1
    for shift in range(0, 35, 7):
        byte = raw[at] if at < len(raw) else 0
        length |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            break
    if at + length != len(raw):
        raise ValueError(
            f"{faces.describe(index)}: Datum of {length} bytes in a value of {len(raw)}"
        )
    return raw[at:]


def _scan(mdb: str, keys: Path) -> dict[str, np.ndarray]:
    held, offsets, sizes = _columns(
        (key, *place) for key, place in values(PreadFile(mdb)) if b"\0" not in key
    )
    wanted, labels, lines = _columns(_listed(keys))
    if not len(wanted):
        raise ValueError(f"{keys}: is empty")
    rows = np.searchsorted(held, wanted)  # the tree yields its keys in order
    missing = rows == len(held)
    missing[~missing] = held[rows[~missing]] != wanted[~missing]
    if missing.any():
        first = int(missing.argmax())
        raise ValueError(
            f"{keys} line {lines[first]}: key {bytes(wanted[first])!r} is not in {mdb}"
        )
    return {
        "shard": np.zeros(len(rows), np.int32),
        "offset": offsets[rows],
        "size": sizes[rows],
        "labels": labels,
        "classes": np.array(labels.max() + 1),
    }


def _listed(keys: Path) -> Iterator[tuple[bytes, int, int]]:
    """(key, label, line number) of each line of a list."""
    with open(keys, "rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2 or not words[1].isdigit() or len(words[1]) > LONGEST_LABEL:
                raise ValueError(f"{keys} line {number}: {line[:80]!r}, expected KEY LABEL")
            yield words[0], int(words[1]), number


def _columns(rows: Iterator[tuple[bytes, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(keys as fixed-width bytes, int64, int64), (N,) each: few Python objects at a time, however
    many rows."""
    keys, first, second = [np.zeros(0, "S1")], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while some := list(islice(rows, ROWS_AT_ONCE)):
        keys.append(np.array([row[0] for row in some], np.bytes_))
        first.append(np.array([row[1] for row in some], np.int64))
        second.append(np.array([row[2] for row in some], np.int64))
    return np.concatenate(keys), np.concatenate(first), np.concatenate(second)


def values(file: PreadFile) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """(key, (offset, size)) of every value of the main database, in the order of keys."""
    page_size, root, pages = _meta(file)
    before: bytes | None = None
    for key, place in _walk(file, root, page_size, pages, 0, set()) if root != EMPTY else ():
        if before is not None and key <= before:
            raise ValueError(
                f"{file.path}: key {key!r} stands behind {before!r}; the tree is broken"
            )
        before = key
        yield key, place


def _meta(file: PreadFile) -> tuple[int, int, int]:
    """(page size, root page, pages in use) of the newer of the two meta pages."""
    found = []
    page_size = _read_meta(file, 0)[1]
    for at in (0, page_size):
        txn, size, root, last = _read_meta(file, at)
        if size != page_size:
            raise ValueError(f"{file.path}: its two meta pages disagree on the page size")
        found.append((txn, root, last + 1))
    _, root, pages = max(found)
    if pages * page_size > file.size or file.size % page_size:
        raise ValueError(
            f"{file.path}: {pages} pages of {page_size} bytes, but the file has {file.size}; truncated"
        )
    return page_size, root, pages


def _read_meta(file: PreadFile, at: int) -> tuple[int, int, int, int]:
    """(transaction, page size, root, last page)."""
    raw = file.read(at + PAGE.size, 136)
    magic, version = struct.unpack_from("<II", raw)
    if magic != MAGIC or version != 1:
        raise ValueError(
            f"{file.path}: magic {magic:#x} version {version}, expected LMDB's {MAGIC:#x} version 1"
        )
    page_size = struct.unpack_from("<I", raw, 24)[0]
    root, last, txn = struct.unpack_from("<3Q", raw, 24 + 48 + 40)
    if page_size not in (1 << power for power in range(9, 17)):
        raise ValueError(f"{file.path}: page size {page_size}")
    return txn, page_size, root, last


def _walk(
    file: PreadFile, number: int, page_size: int, pages: int, depth: int, visited: set[int]
) -> Iterator[tuple[bytes, tuple[int, int]]]:
    if number >= pages or depth > DEEPEST or number in visited:
        raise ValueError(
            f"{file.path}: tree points to page {number} of {pages}, or in a circle; broken"
        )
    visited.add(number)
    page = file.read(number * page_size, page_size)
    own, _, flags, lower, upper = PAGE.unpack_from(page)
    if (
        own != number
        or flags & (BRANCH | LEAF) not in (BRANCH, LEAF)
        or not PAGE.size <= lower <= page_size
    ):
        raise ValueError(f"{file.path}: page {number} is no page of the tree")
    used = 0
    for at in struct.unpack_from(f"<{(lower - PAGE.size) // 2}H", page, PAGE.size):
        if at + NODE.size > page_size:
            raise ValueError(f"{file.path}: page {number} points beyond itself")
        low, high, bits, key_size = NODE.unpack_from(page, at)
        held = 0 if flags & BRANCH else 8 if bits & BIG else low | high << 16
        used += (NODE.size + key_size + held + 1) // 2 * 2
        if flags & BRANCH:
            yield from _walk(
                file, low | high << 16 | bits << 32, page_size, pages, depth + 1, visited
            )
            continue
        size, begin = low | high << 16, at + NODE.size + key_size
        key = page[at + NODE.size : begin]
        if bits & (SUB | DUPLICATES):
            raise ValueError(f"{file.path}: holds sub-databases; expected plain keys and values")
        if bits & BIG:
            if begin + 8 > page_size:
                raise ValueError(f"{file.path}: page {number} points beyond itself")
            start = struct.unpack_from("<Q", page, begin)[0]
            where = start * page_size + PAGE.size
            if start >= pages or where + size > pages * page_size:
                raise ValueError(f"{file.path}: value of {key!r} lies beyond the file")
        else:
            where = number * page_size + begin
            if begin + size > page_size:
                raise ValueError(f"{file.path}: value of {key!r} lies beyond its page")
        yield key, (where, size)
    if (
        used != page_size - upper
    ):  # nodes fill the page's end without a gap: a wrong size or pointer shows here
        raise ValueError(
            f"{file.path}: nodes of page {number} fill {used} bytes, its header says {page_size - upper}"
        )
