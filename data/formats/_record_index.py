"""The index of a record file, made again from the frames of its records."""

import struct
from array import array
from collections.abc import Callable, Iterator

import numpy as np

from data.files import PreadFile
from data.formats._index_cache import Arrays, is_column, within
from data.formats._record_bytes import FIRST, FRAME, HEADER, LONGEST_SEGMENT, MAGIC, WHOLE

CHUNK = 1 << 22  # bytes that are read at a time, whatever the records' size
START = struct.Struct("<IIIfQ")  # a frame, then flag, label and id of the header
NO_ID = 1 << 63


def walk(file: PreadFile) -> Iterator[tuple[int, int]]:
    """(offset, id) of each record, from frame to frame. The id is NO_ID in a payload without one.

    It reads the whole file once, in its order. ValueError where no record begins, and for a record
    that is cut off.
    """
    at = begin = 0
    chunk = b""
    while at < file.size:
        if at + START.size > begin + len(chunk):
            begin, chunk = at, file.read(at, min(CHUNK, file.size - at))
        head = chunk[at - begin :][: START.size].ljust(START.size, b"\0")
        magic, word, _, _, number = START.unpack(head)
        if magic != MAGIC:
            raise ValueError(f"{file.path} at byte {at}: no record begins here; the walk stops")
        segment, length = word >> 29, word & LONGEST_SEGMENT
        if at + FRAME.size + length > file.size:
            raise ValueError(f"{file.path} at byte {at}: the last record is cut off")
        if segment in (WHOLE, FIRST):
            yield at, number if length >= HEADER.size else NO_ID
        at += FRAME.size + length + -length % 4


def scan_records(file: PreadFile, progress: Callable[[int], None] | None = None) -> Arrays:
    """`keys` and `offsets`, int64 (K,) each, of all records.

    Keys are the ids of the headers, or the records' places in the file where ids are not unique.
    progress: called with the number of bytes that were passed.
    """
    offsets, ids, told = array("q"), array("Q"), 0  # a list would need five times the memory
    for offset, number in walk(file):
        offsets.append(offset)
        ids.append(number)
        if progress is not None and offset - told > CHUNK:
            progress(offset - told)
            told = offset
    if not offsets:
        raise ValueError(f"{file.path}: holds no record")
    keys = np.array(ids, np.uint64)
    if int(keys.max()) >= NO_ID or len(np.unique(keys)) < len(keys):
        keys = np.arange(len(keys), dtype=np.uint64)
    return {"keys": keys.astype(np.int64), "offsets": np.array(offsets, np.int64)}


def index_agrees(arrays: Arrays, size: int) -> bool:
    """Whether stored arrays are a `scan_records` of a file of `size` bytes."""
    keys, offsets = arrays["keys"], arrays["offsets"]
    columns = len(keys) > 0 and is_column(keys, len(keys), "i")
    return columns and is_column(offsets, len(keys), "i") and within(offsets, 0, size)
