"""LMDB as the public code of F²C writes it: `data.mdb`, and beside it one list `*_kv.txt`.

Lines of the list are `KEY LABEL`. A value is an image or a protobuf Datum that holds one.

This file walks the B-tree once (LMDB 0.9's file format, 64-bit) and remembers where each value
lies. The lmdb package is not used: it maps the file into memory, and a truncated file then ends the
process with SIGBUS (tried) where this code raises an error.
"""

import codecs
import os
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from data.files import PreadFile, open_file
from data.formats._index_cache import Arrays
from data.formats._packed import (
    PackedSet,
    bytes_column,
    checksums,
    find_files,
    label_of,
    load_index,
)
from data.types import Int64

MAGIC, VERSION = 0xBEEFC0DE, 1
PAGE = struct.Struct("<Q4H")  # page number, pad, flags, lower, upper
NODE = struct.Struct("<4H")  # low and high half of size or page, flags, key size
META_PAGE_SIZE, META_ROOT, META_SIZE = 24, 112, 136  # offsets within a meta page, and its size
BRANCH, LEAF = 1, 2  # kinds of pages
BIG, SUB, DUPLICATES = 1, 2, 4  # kinds of nodes
DEEPEST = 32
EMPTY = 2**64 - 1
ROWS_AT_ONCE = 1 << 16
LONGEST_LINE = 1 << 10  # LMDB's keys have at most 511 bytes
Value = tuple[bytes, tuple[int, int]]  # key, and offset and size of the value in the file


def detect(path: str) -> bool:
    return path.endswith(".mdb") or (Path(path) / "data.mdb").is_file()


def open_set(path: str) -> PackedSet:
    """Opens a folder with data.mdb and one *_kv.txt, or the .mdb file itself."""
    mdb = Path(path) if path.endswith(".mdb") else Path(path) / "data.mdb"
    if not mdb.is_file():
        raise FileNotFoundError(f"{mdb}: no such file")
    lists = [Path(path) for path in find_files(mdb.parent, "kv.txt")]
    if len(lists) != 1:
        raise ValueError(
            f"{mdb.parent}: expected one list of keys and labels, *_kv.txt, but found {len(lists)}"
        )
    columns = load_index(
        str(mdb), [str(mdb)], lambda: _scan(str(mdb), lists[0]), lists=(str(lists[0]),)
    )
    return PackedSet([str(mdb)], columns, unwrap)


def unwrap(raw: bytes, faces: PackedSet, index: int) -> bytes:
    """The bytes in field 1 of a Datum message, or the value itself if it is not a Datum."""
    if not raw.startswith(b"\x0a"):
        return raw
    # The length of the field is a varint: seven bits per byte, the lowest first.
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


def _scan(mdb: str, keys: Path) -> Arrays:
    most = os.path.getsize(mdb)
    listed = ((key, *place) for key, place in values(PreadFile(mdb)) if b"\0" not in key)
    held, offsets, sizes = _columns(listed, most, mdb)
    wanted, labels, lines = _columns(_listed(keys), most, str(keys))
    if not len(wanted):
        raise ValueError(f"{keys}: is empty")
    # The tree yields its keys in order, so a binary search finds the listed ones.
    rows = np.searchsorted(held, wanted)
    missing = rows == len(held)
    missing[~missing] = held[rows[~missing]] != wanted[~missing]
    if missing.any():
        first = int(missing.argmax())
        key = bytes(wanted[first])
        raise ValueError(f"{keys} line {lines[first]}: key {key!r} is not in {mdb}")
    return {
        "shard": np.zeros(len(rows), np.int32),
        "offset": offsets[rows],
        "size": sizes[rows],
        "labels": labels,
        "key": checksums(wanted.tolist()),
        "classes": np.array(labels.max() + 1, np.int64),
    }


def _listed(keys: Path) -> Iterator[tuple[bytes, int, int]]:
    """(key, label, line number) of each line of a list."""
    with open_file(keys) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError(f"{keys}: is UTF-16; save it as UTF-8")
            words = line.split()
            if len(words) == 1:
                words = [word.strip() for word in line.rsplit(b",", 1)]
            if not words:
                continue
            if len(words) != 2:
                raise ValueError(f"{keys} line {number}: {line[:80]!r}, expected KEY LABEL")
            yield words[0], label_of(words[1], f"{keys} line {number}"), number


def _columns(
    rows: Iterator[tuple[bytes, int, int]], most: int, where: str
) -> tuple[np.ndarray, Int64, Int64]:
    """The three columns of all rows, (N,) each: keys as fixed-width bytes, and two numbers.

    Only ROWS_AT_ONCE rows at a time are Python objects. most: bytes that the keys may need.
    """
    keys, first, second = [np.zeros(0, "S1")], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    longest = count = 0
    while some := list(islice(rows, ROWS_AT_ONCE)):
        keys.append(bytes_column([row[0] for row in some], most, where))
        first.append(np.array([row[1] for row in some], np.int64))
        second.append(np.array([row[2] for row in some], np.int64))
        longest, count = max(longest, keys[-1].itemsize), count + len(some)
        if longest * count > most:
            raise ValueError(
                f"{where}: {count} keys of up to {longest} bytes need more than the {most:,} "
                "bytes of the database that should hold them"
            )
    return np.concatenate(keys), np.concatenate(first), np.concatenate(second)


def values(file: PreadFile) -> Iterator[Value]:
    """(key, (offset, size)) of every value of the main database, in the order of keys."""
    tree = _Tree(file)
    before: bytes | None = None
    for key, place in tree.walk(tree.root) if tree.root != EMPTY else ():
        if before is not None and key <= before:
            raise ValueError(f"{file.path}: key {key!r} comes after {before!r}; the tree is broken")
        before = key
        yield key, place


class _Tree:
    """The B-tree of the main database, from the newer of the file's two meta pages."""

    def __init__(self, file: PreadFile) -> None:
        self.file = file
        self.visited: set[int] = set()
        first = self._meta(0)
        self.page_size = first[3]
        second = self._meta(self.page_size)
        if second[3] != self.page_size:
            raise ValueError(f"{file.path}: its two meta pages disagree on the page size")
        _, self.root, last, _ = max(first, second)
        self.pages = last + 1
        if self.pages * self.page_size > file.size or file.size % self.page_size:
            raise ValueError(
                f"{file.path}: {self.pages} pages of {self.page_size} bytes, "
                f"but the file has {file.size}; truncated"
            )

    def _meta(self, at: int) -> tuple[int, int, int, int]:
        """(transaction, root page, last page, page size) of the meta page at byte `at`."""
        raw = self.file.read(at + PAGE.size, META_SIZE)
        magic, version = struct.unpack_from("<II", raw)
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError(
                f"{self.file.path}: magic {magic:#x} version {version}, "
                f"expected LMDB's {MAGIC:#x} version {VERSION}"
            )
        page_size = struct.unpack_from("<I", raw, META_PAGE_SIZE)[0]
        root, last, transaction = struct.unpack_from("<3Q", raw, META_ROOT)
        if page_size not in (1 << power for power in range(9, 17)):
            raise ValueError(f"{self.file.path}: page size {page_size}")
        return transaction, root, last, page_size

    def walk(self, number: int, depth: int = 0) -> Iterator[Value]:
        """(key, (offset, size)) of every value below page `number`."""
        path, page_size = self.file.path, self.page_size
        if number >= self.pages or depth > DEEPEST or number in self.visited:
            raise ValueError(
                f"{path}: tree points to page {number} of {self.pages}, or in a circle; broken"
            )
        self.visited.add(number)
        page = self.file.read(number * page_size, page_size)
        own, _, flags, lower, upper = PAGE.unpack_from(page)
        kind = flags & (BRANCH | LEAF)
        if own != number or kind not in (BRANCH, LEAF) or not PAGE.size <= lower <= page_size:
            raise ValueError(f"{path}: page {number} is no page of the tree")

        used = 0
        for at in struct.unpack_from(f"<{(lower - PAGE.size) // 2}H", page, PAGE.size):
            if at + NODE.size > page_size:
                raise ValueError(f"{path}: page {number} points beyond itself")
            low, high, bits, key_size = NODE.unpack_from(page, at)
            begin, size = at + NODE.size + key_size, low | high << 16
            filled = begin - at + (0 if kind == BRANCH else 8 if bits & BIG else size)
            used += filled + filled % 2
            if kind == BRANCH:
                yield from self.walk(size | bits << 32, depth + 1)
                continue
            if bits & (SUB | DUPLICATES):
                raise ValueError(f"{path}: holds sub-databases; expected plain keys and values")
            key = page[at + NODE.size : begin]
            yield key, self._place(number, page, begin, size, big=bool(bits & BIG))

        # Nodes fill the end of a page without a gap, so a wrong size or pointer shows here.
        if used != page_size - upper:
            raise ValueError(
                f"{path}: nodes of page {number} fill {used} bytes, "
                f"its header says {page_size - upper}"
            )

    def _place(
        self, number: int, page: bytes, begin: int, size: int, *, big: bool
    ) -> tuple[int, int]:
        """(offset, size) of a value, which lies in its node's page, or if big in separate pages."""
        path, page_size = self.file.path, self.page_size
        if big:
            if begin + 8 > page_size:
                raise ValueError(f"{path}: page {number} points beyond itself")
            first = struct.unpack_from("<Q", page, begin)[0]
            where, end = first * page_size + PAGE.size, self.pages * page_size
        else:
            where, end = number * page_size + begin, (number + 1) * page_size
        if where + size > end:
            raise ValueError(f"{path}: a value of page {number} lies beyond its place")
        return where, size
