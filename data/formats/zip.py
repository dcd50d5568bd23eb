"""Zip shards read in place, as WebFace42M ships (0_0.zip …): IDENTITY/IMAGE.jpg in one file or a
folder of them.

An identity is a folder inside the archive (its whole path there); the same path in two shards is
the same identity. Stored and deflated members, ZIP64; the index is kept beside the shards.
"""

from __future__ import annotations

import struct
import zlib
from array import array

import numpy as np

from data.files import PreadFile
from data.formats._packed import PackedSet, indexed, is_shards, numbered, shards_of
from data.images import SUFFIXES

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
LARGEST_IMAGE = 1 << 28
WORD = 0xFFFFFFFF
IMAGE_ENDS = tuple(suffix.encode() for suffix in SUFFIXES)


def detect(path: str) -> bool:
    return is_shards(path, ".zip")


def open_set(path: str) -> PackedSet:
    """Reads the central directories (once; then the index beside the shards)."""
    shards = shards_of(path, ".zip")
    return PackedSet(shards, indexed(path, shards, lambda: _scan(shards)), unwrap)


def unwrap(raw: bytes, faces: PackedSet, index: int) -> bytes:
    """The member of a local header, after checking that it is of the right identity, whole, and by
    its CRC."""
    where = faces.describe(index)
    if len(raw) < LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise ValueError(
            f"{where}: no zip member begins here; the archive has changed or is broken"
        )
    _, _, flags, method, _, _, _, _, _, name_length, extra_length = LOCAL.unpack_from(raw)
    begin = LOCAL.size + name_length + extra_length
    name = raw[LOCAL.size : LOCAL.size + name_length]
    expected = bytes(faces.columns["names"][faces.labels[index]])
    if name.rpartition(b"/")[0] != expected:
        raise ValueError(f"{where}: found {name!r}, expected an image of {expected!r}")
    stored = raw[begin : begin + int(faces.columns["stored"][index])]
    length = int(faces.columns["length"][index])
    if flags & 1 or method not in (0, 8):
        raise ValueError(
            f"{where}: {name!r} is {'encrypted' if flags & 1 else f'compressed by method {method}'}"
        )
    try:
        data = stored if method == 0 else zlib.decompressobj(-15).decompress(stored, length + 1)
    except zlib.error as error:
        raise ValueError(f"{where}: {name!r}: {error}") from None
    if len(data) != length or zlib.crc32(data) != int(faces.columns["crc"][index]):
        raise ValueError(
            f"{where}: {name!r} has another length or checksum than the archive's directory says"
        )
    return data


def _scan(shards: list[str]) -> dict[str, np.ndarray]:
    columns = {name: array("q") for name in ("shard", "offset", "size", "stored", "length")}
    crc, identity = array("L"), array("i")
    parents: dict[bytes, int] = {}
    for shard, path in enumerate(shards):
        file = PreadFile(path)
        directory, start = _directory(file)
        at, first = 0, len(identity)
        while at < len(directory):
            at, name, member = _entry(directory, at, path)
            if name.lower().endswith(IMAGE_ENDS):
                parent = name.rpartition(b"/")[0]
                if not parent:
                    raise ValueError(
                        f"{path}: image {name!r} lies in no folder; expected IDENTITY/IMAGE"
                    )
                identity.append(parents.setdefault(parent, len(parents)))
                for column, value in zip(("offset", "stored", "length"), member[:3], strict=True):
                    columns[column].append(value)
                columns["shard"].append(shard)
                crc.append(member[3])
        offsets = np.array(columns["offset"], np.int64)[first:]
        order = np.argsort(offsets, kind="stable")
        following = np.append(offsets[order][1:], start)
        spans = np.empty_like(offsets)
        spans[order] = following - offsets[order]
        limit = LOCAL.size + 2 * 0xFFFF + np.array(columns["stored"], np.int64)[first:]
        if (spans <= 0).any() or (limit > LARGEST_IMAGE).any():
            raise ValueError(
                f"{path}: directory with overlapping members or an image above {LARGEST_IMAGE} bytes"
            )
        columns["size"].frombytes(np.minimum(spans, limit).tobytes())
    if not parents:
        raise ValueError(f"{shards[0]}: holds no image ({', '.join(SUFFIXES)})")
    labels, names = numbered(list(parents), np.array(identity, np.int32))
    flat = {
        name: np.array(column, np.int64 if name == "offset" else np.int32)
        for name, column in columns.items()
    }
    return {**flat, "crc": np.array(crc, np.uint32), "labels": labels, "names": names}


def _directory(file: PreadFile) -> tuple[bytes, int]:
    """(bytes of the central directory, its offset)."""
    tail_at = max(0, file.size - END.size - 0xFFFF)
    tail = file.read(tail_at, file.size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + END.size > len(tail):
        raise ValueError(f"{file.path}: no zip directory at its end; not a zip file, or truncated")
    _, disk, _, _, _, size, start, _ = END.unpack_from(tail, at)
    if at >= LOCATOR64.size and tail[at - LOCATOR64.size :][:4] == b"PK\x06\x07":
        _, _, end64, _ = LOCATOR64.unpack_from(tail, at - LOCATOR64.size)
        found = END64.unpack(file.read(end64, END64.size))
        if found[0] != b"PK\x06\x06":
            raise ValueError(f"{file.path}: no ZIP64 directory record at byte {end64}")
        size, start = found[8], found[9]
    if disk not in (0, 0xFFFF):
        raise ValueError(f"{file.path}: is one volume of a split archive; join the volumes first")
    if start + size > tail_at + at:
        raise ValueError(
            f"{file.path}: directory of {size} bytes at {start} lies beyond its end; truncated"
        )
    return file.read(start, size), start


def _entry(directory: bytes, at: int, path: str) -> tuple[int, bytes, tuple[int, int, int, int]]:
    """(where the next entry begins, name, (local offset, stored bytes, length, CRC)) of one
    directory entry."""
    if at + CENTRAL.size > len(directory) or directory[at : at + 4] != b"PK\x01\x02":
        raise ValueError(f"{path}: broken zip directory at its byte {at}")
    fields = CENTRAL.unpack_from(directory, at)
    crc, stored, length, name_length, extra_length, comment_length = fields[7:13]
    offset = fields[16]
    begin = at + CENTRAL.size
    name = directory[begin : begin + name_length]
    following = begin + name_length + extra_length + comment_length
    if following > len(directory):
        raise ValueError(f"{path}: zip directory is cut off at its byte {at}")
    if WORD in (stored, length, offset):
        length, stored, offset = _zip64(
            directory[begin + name_length : following], length, stored, offset, path
        )
    return following, name, (offset, stored, length, crc)


def _zip64(extra: bytes, length: int, stored: int, offset: int, path: str) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = iter(
                struct.unpack_from(f"<{min(size, len(extra) - at - 4) // 8}Q", extra, at + 4)
            )
            try:
                length, stored, offset = (
                    next(values) if v == WORD else v for v in (length, stored, offset)
                )
                return length, stored, offset
            except RuntimeError:  # a generator that ran out of values
                break
        at += 4 + size
    raise ValueError(f"{path}: a member above 4 GiB without its ZIP64 sizes")
