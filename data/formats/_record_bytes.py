"""The bytes of MXNet RecordIO: framing, image headers, index lines.

The layout of a whole set is in data/formats/recordio.py. All numbers are little-endian.

    record:   uint32 magic; uint32 with a 3-bit flag above a 29-bit length; payload; zeros up to a
              multiple of 4.
    payload:  header `<IfQQ` (flag, label, id, id2); if flag > 0, `flag` float32 labels; the image.

A payload that contains the magic at a multiple of 4 is cut into segments there, and the magic is
left out. The flag of a record says which segment it is: 0 the whole, 1 the first, 2 a middle one,
3 the last.
"""

import re
import struct

import numpy as np

from data.files import PreadFile, open_file
from data.limits import MOST_IMAGE_BYTES
from data.types import Int64

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LONGEST_SEGMENT = (1 << 29) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
# The frame, then flag and label of the header. The length of any segment but WHOLE seems enormous.
WHOLE_RECORD = struct.Struct("<IIIf")
EXACT_LABELS = 1 << 24  # float32 holds every integer up to here
INDEX_CHUNK = 1 << 24
LONGEST_LINE = 64  # of an index
HEADERS_AT_ONCE = 1 << 18
FIRST_READ = 1 << 18


class CutOff(ValueError):
    """The bytes end before the record does."""


def pack_record(payload: bytes) -> bytes:
    """One framed record, cut into segments where the payload holds the magic."""
    found = (match.start() for match in re.finditer(re.escape(MAGIC_BYTES), payload))
    cuts = [at for at in found if at % 4 == 0]
    starts = [0, *(cut + 4 for cut in cuts)]
    ends = [*cuts, len(payload)]

    flags = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [WHOLE]
    framed = []
    for flag, start, end in zip(flags, starts, ends, strict=True):
        length = end - start
        if length > LONGEST_SEGMENT:
            raise ValueError(
                f"record of {len(payload)} bytes: "
                f"RecordIO holds at most {LONGEST_SEGMENT} in a segment"
            )
        frame = FRAME.pack(MAGIC, flag << 29 | length)
        framed += [frame, payload[start:end], bytes(-length % 4)]
    return b"".join(framed)


def unpack_record(data: bytes, where: str) -> tuple[bytes, int]:
    """(payload, bytes used) of the record at the beginning of `data`."""
    segments, at, expected = [], 0, (WHOLE, FIRST)
    while True:
        begin = at + FRAME.size
        if begin > len(data):
            raise CutOff(f"{where}: record is cut off")
        magic, word = FRAME.unpack_from(data, at)
        flag, length = word >> 29, word & LONGEST_SEGMENT
        if magic != MAGIC:
            raise ValueError(
                f"{where}: found {magic:#010x} where a record begins, "
                f"expected the magic {MAGIC:#010x}"
            )
        if flag not in expected:
            wanted = " or ".join(map(str, expected))
            raise ValueError(f"{where}: segment flag {flag}, expected {wanted}")
        if begin + length > len(data):
            raise CutOff(f"{where}: record of {length} bytes is cut off")
        segments.append(data[begin : begin + length])
        at = begin + length + -length % 4
        if flag in (WHOLE, LAST):
            return MAGIC_BYTES.join(segments), min(at, len(data))
        expected = (MIDDLE, LAST)


def pack_image(encoded: bytes, labels: float | np.ndarray, key: int) -> bytes:
    """Payload of an image. The header holds one label; an array of labels follows the header."""
    if isinstance(labels, np.ndarray):
        return HEADER.pack(len(labels), 0.0, key, 0) + labels.astype("<f4").tobytes() + encoded
    return HEADER.pack(0, labels, key, 0) + encoded


def unpack_image(payload: bytes, where: str) -> tuple[np.ndarray, int, bytes]:
    """(labels float32 (L,), id, encoded bytes) of a payload."""
    if len(payload) < HEADER.size:
        raise ValueError(
            f"{where}: payload of {len(payload)} bytes is shorter than its header of {HEADER.size}"
        )
    flag, label, key, _ = HEADER.unpack_from(payload)
    if flag == 0:
        return np.array([label], np.float32), key, payload[HEADER.size :]
    end = HEADER.size + 4 * flag
    if end > len(payload):
        raise ValueError(f"{where}: announces {flag} labels in a payload of {len(payload)} bytes")
    return np.frombuffer(payload, "<f4", flag, HEADER.size), key, payload[end:]


def image_of_whole_record(record: bytes, label: float) -> bytes | None:
    """The image of a record in one segment with the single label `label`.

    None for all other records; those need `unpack_record` and `unpack_image`.
    """
    if len(record) < WHOLE_RECORD.size:
        return None
    magic, length, flag, found = WHOLE_RECORD.unpack_from(record)
    fits = HEADER.size < length <= len(record) - FRAME.size
    if magic != MAGIC or flag or found != label or not fits:
        return None
    return record[FRAME.size + HEADER.size : FRAME.size + length]


def read_index(path: str, records: int | None = None) -> tuple[Int64, Int64]:
    """(keys, offsets), int64 (K,) each, of an .idx file in the order of its lines.

    records: bytes of the record file, which says how many lines the index may have. 5.2 million
    lines take about a second.
    """
    pieces, count = [], 0
    with open_file(path) as file:
        while text := file.read(INDEX_CHUNK):
            text += file.readline(LONGEST_LINE)
            if text.translate(None, b"0123456789\t\r\n "):
                raise ValueError(
                    f"{path}: holds characters other than digits; expected lines `key<TAB>offset`"
                )
            values = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
            if len(values) != 2 * text.count(b"\t") or len(values) % 2:
                raise ValueError(f"{path}: a line is not `key<TAB>offset`")
            count += len(values) // 2
            if records is not None and count > records // FRAME.size:
                raise ValueError(
                    f"{path}: has {count} lines or more, but {records} bytes hold at most "
                    f"{records // FRAME.size} records; the .idx belongs to another file"
                )
            pieces.append(values.reshape(-1, 2))
    if not pieces:
        raise ValueError(f"{path}: is empty")
    table = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    return table[:, 0], table[:, 1]


BROKEN = -1  # what stands for the flag of a broken record
Headers = tuple[np.ndarray, Int64, Int64]


def read_headers(file: PreadFile, offsets: Int64) -> Headers:
    """(first label, flag, bytes of the image), (K,) each, of the records at `offsets`.

    Flag and bytes are BROKEN, and the label is 0, where no whole record begins. It reads the
    headers only, except for records in several segments.
    """
    starts = range(0, max(len(offsets), 1), HEADERS_AT_ONCE)
    columns = [_headers(file, offsets[start : start + HEADERS_AT_ONCE]) for start in starts]
    labels, flags, lengths = zip(*columns, strict=True)
    return np.concatenate(labels), np.concatenate(flags), np.concatenate(lengths)


def _headers(file: PreadFile, offsets: Int64) -> Headers:
    width = FRAME.size + HEADER.size + 4  # up to the first label where flag > 0
    raw = file.read_padded(offsets.tolist(), width)
    words = np.frombuffer(raw, "<u4").reshape(-1, width // 4)
    floats = words.view("<f4")
    segment, length = words[:, 1] >> 29, (words[:, 1] & LONGEST_SEGMENT).astype(np.int64)
    end = offsets + FRAME.size + length
    broken = (words[:, 0] != MAGIC) | (segment > FIRST) | (end > file.size)
    flags = words[:, 2].astype(np.int64)
    labels = np.where(flags > 0, floats[:, 8], floats[:, 3])
    images = length - HEADER.size - 4 * flags
    # Records in several segments, and those too short for their header, are read completely.
    for row in np.flatnonzero(~broken & ((segment == FIRST) | (images < 0))).tolist():
        offset = int(offsets[row])
        place = f"{file.path} at byte {offset}"
        try:
            found, _, image = unpack_image(read_record(file, offset, file.size, place), place)
        except ValueError:
            broken[row] = True
            continue
        labels[row], images[row] = found[0], len(image)
        flags[row] = len(found) if flags[row] else 0
    flags[broken], images[broken] = BROKEN, BROKEN
    return np.where(broken, np.float32(0), labels), flags, images


def read_record(file: PreadFile, offset: int, end: int, where: str) -> bytes:
    """Payload of the record that begins at `offset` and ends before `end`.

    ValueError if it has more than MOST_IMAGE_BYTES.
    """
    length = min(end - offset, FIRST_READ)
    while True:
        data = file.read(offset, length)
        try:
            return unpack_record(data, where)[0]
        except CutOff:
            if offset + length >= end:
                raise
            if length >= MOST_IMAGE_BYTES:
                raise ValueError(
                    f"{where}: record of more than {MOST_IMAGE_BYTES:,} bytes, the limit"
                ) from None
            length = min(end - offset, 8 * length, MOST_IMAGE_BYTES)
