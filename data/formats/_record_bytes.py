"""The bytes of MXNet RecordIO: framing, image headers, index lines. The layout of a whole set is
data/formats/recordio.py.

Record: uint32 magic; uint32 with a 3-bit part flag (0 whole, 1 first, 2 middle, 3 last) over a
29-bit length; payload; zeros up to a multiple of 4. A payload that holds the magic at a multiple of
4 is cut there and the magic left out. Payload: header `<IfQQ` (flag, label, id, id2); flag > 0
means that `flag` float32 labels follow; then the image. All little-endian.
"""

from __future__ import annotations

import struct

import numpy as np

from data.files import PreadFile

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
MAX_PART = (1 << 29) - 1
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
# frame, then flag and label of the header; a part flag makes the length enormous
WHOLE = struct.Struct("<IIIf")
EXACT_LABELS = 1 << 24  # float32 holds every integer up to here
INDEX_CHUNK = 1 << 24
HEADERS_AT_ONCE = 1 << 18
FIRST_READ = 1 << 18


class CutOff(ValueError):
    """The bytes end before the record does."""


def pack_record(payload: bytes) -> bytes:
    """One framed record, cut into parts where the payload holds the magic."""
    cuts = []
    at = payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            cuts.append(at)
        at = payload.find(MAGIC_BYTES, at + (4 if at % 4 == 0 else 1))
    starts = [0, *(cut + 4 for cut in cuts)]
    ends = [*cuts, len(payload)]
    framed = []
    for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end - start > MAX_PART:
            raise ValueError(
                f"record of {len(payload)} bytes: RecordIO holds at most {MAX_PART} in a part"
            )
        flag = 0 if not cuts else 1 if part == 0 else 3 if part == len(cuts) else 2
        framed += [
            FRAME.pack(MAGIC, flag << 29 | (end - start)),
            payload[start:end],
            bytes(-(end - start) % 4),
        ]
    return b"".join(framed)


def unpack_record(data: bytes, where: str) -> tuple[bytes, int]:
    """(payload, bytes used) of the record at the beginning of `data`."""
    parts, at, expected = [], 0, (0, 1)
    while True:
        if at + 8 > len(data):
            raise CutOff(f"{where}: record is cut off")
        magic, word = FRAME.unpack_from(data, at)
        flag, length = word >> 29, word & MAX_PART
        if magic != MAGIC:
            raise ValueError(
                f"{where}: found {magic:#010x} where a record begins, expected the magic {MAGIC:#010x}"
            )
        if flag not in expected:
            raise ValueError(
                f"{where}: part flag {flag}, expected {' or '.join(map(str, expected))}"
            )
        if at + 8 + length > len(data):
            raise CutOff(f"{where}: record of {length} bytes is cut off")
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length + -length % 4
        if flag in (0, 3):
            return MAGIC_BYTES.join(parts), min(at, len(data))
        expected = (2, 3)


def pack_image(encoded: bytes, labels: float | np.ndarray, key: int) -> bytes:
    """Payload of an image. One label goes into the header; an array (flag = its length) behind
    it."""
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


def whole_image(record: bytes, label: float) -> bytes | None:
    """The image of a record in one part with the single label `label`; None for any other, to be
    read with care."""
    if len(record) < WHOLE.size:
        return None
    magic, length, flag, found = WHOLE.unpack_from(record)
    if (
        magic != MAGIC
        or flag
        or found != label
        or not HEADER.size < length <= len(record) - FRAME.size
    ):
        return None
    return record[FRAME.size + HEADER.size : FRAME.size + length]


def read_index(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets), int64 (K,) each, of a .idx file in the order of its lines. 5.2 M lines take
    about a second."""
    pieces = []
    with open(path, "rb") as file:
        while text := file.read(INDEX_CHUNK):
            text += file.readline()
            if text.translate(None, b"0123456789\t\r\n "):
                raise ValueError(
                    f"{path}: holds characters other than digits; expected lines `key<TAB>offset`"
                )
            values = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
            if len(values) != 2 * text.count(b"\t") or len(values) % 2:
                raise ValueError(f"{path}: a line is not `key<TAB>offset`")
            pieces.append(values.reshape(-1, 2))
    if not pieces:
        raise ValueError(f"{path}: is empty")
    table = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    return table[:, 0], table[:, 1]


def read_headers(file: PreadFile, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first label float32, flag int64, image bytes int64), (K,) each, of the records at offsets;
    reads no more."""
    columns = [
        _headers(file, offsets[start : start + HEADERS_AT_ONCE])
        for start in range(0, len(offsets), HEADERS_AT_ONCE)
    ]
    if not columns:
        return np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)
    labels, flags, lengths = zip(*columns, strict=True)
    return np.concatenate(labels), np.concatenate(flags), np.concatenate(lengths)


def _headers(file: PreadFile, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    width = 36  # frame 8, header 24, and the first label where flag > 0
    raw = b"".join(
        [file.read(o, min(width, file.size - o)).ljust(width, b"\0") for o in offsets.tolist()]
    )
    words = np.frombuffer(raw, "<u4").reshape(-1, width // 4)
    length = (words[:, 1] & MAX_PART).astype(np.int64)
    broken = (words[:, 0] != MAGIC) | (words[:, 1] >> 29 > 1) | (offsets + 8 + length > file.size)
    if broken.any():
        where = int(offsets[broken.argmax()])
        raise ValueError(f"{file.path}: no whole record at byte {where}, where the index has one")
    flags = words[:, 2].astype(np.int64)
    labels = np.where(flags > 0, words.view("<f4")[:, 8], words.view("<f4")[:, 3])
    images = length - HEADER.size - 4 * flags
    for row in np.flatnonzero(
        (words[:, 1] >> 29 == 1) | (images < 0)
    ).tolist():  # in parts, or too short
        place = f"{file.path} at byte {int(offsets[row])}"
        found, _, image = unpack_image(
            read_record(file, int(offsets[row]), file.size, place), place
        )
        labels[row], images[row], flags[row] = found[0], len(image), len(found) if flags[row] else 0
    return labels, flags, images


def read_record(file: PreadFile, offset: int, end: int, where: str) -> bytes:
    """Payload of the record that begins at `offset` and is over before `end`."""
    length = min(end - offset, FIRST_READ)
    while True:
        data = file.read(offset, length)
        try:
            return unpack_record(data, where)[0]
        except CutOff:
            if offset + length >= end:
                raise
            length = min(end - offset, 8 * length)
