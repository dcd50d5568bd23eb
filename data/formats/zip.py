"""Zip shards read in place, as WebFace42M has them (0_0.zip …): IDENTITY/IMAGE.jpg.

A set is one zip file or a folder of them. An identity is a folder inside the archives, by its
complete path; the same path in two shards is the same identity. Members may be stored or deflated.
The index of all members is kept beside the shards.
"""

import os
import struct
import zipfile
import zlib

import numpy as np

from data.files import open_file
from data.formats._index_cache import Arrays
from data.formats._packed import (
    PackedSet,
    checksums,
    detect_shards,
    identity_columns,
    list_shards,
    load_index,
    number_folders,
    scan_shards,
)
from data.limits import FREE_BYTES, MOST_BYTES_PER_BYTE, MOST_IMAGE_BYTES
from data.names import SUFFIX, LeftOut, is_image, member_bytes, member_path

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
LOCAL_MAGIC = b"PK\x03\x04"
ENCRYPTED = 1  # a bit of a member's flags
LONGEST_NAME_AND_EXTRA = 2 * 0xFFFF


def detect(path: str) -> bool:
    return detect_shards(path, ".zip")


def open_set(path: str) -> PackedSet:
    """Reads the directories of all archives the first time, and the index beside them later."""
    shards = list_shards(path, ".zip")
    columns = load_index(path, shards, lambda: _scan(shards), own=("stored", "length", "crc"))
    return PackedSet(shards, columns, unwrap)


def unwrap(raw: bytes, faces: PackedSet, index: int) -> bytes:
    """The image of a member whose local header is at the beginning of `raw`.

    ValueError if it belongs to another identity, or if its length or checksum is wrong.
    """
    where = faces.describe(index)
    if len(raw) < LOCAL_HEADER.size or not raw.startswith(LOCAL_MAGIC):
        raise ValueError(
            f"{where}: no zip member begins here; the archive has changed or is broken"
        )
    _, _, flags, method, _, _, _, _, _, name_length, extra_length = LOCAL_HEADER.unpack_from(raw)
    name = raw[LOCAL_HEADER.size :][:name_length]
    expected = bytes(faces.columns["names"][faces.labels[index]])
    if (member_path(name) or b"").rpartition(b"/")[0] != expected:
        raise ValueError(f"{where}: found {name!r}, expected an image of {expected!r}")
    if flags & ENCRYPTED or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        how = "encrypted" if flags & ENCRYPTED else f"compressed by method {method}"
        raise ValueError(f"{where}: {name!r} is {how}")

    begin = LOCAL_HEADER.size + name_length + extra_length
    data = raw[begin : begin + int(faces.columns["stored"][index])]
    length = int(faces.columns["length"][index])
    if method == zipfile.ZIP_DEFLATED:
        most = FREE_BYTES + MOST_BYTES_PER_BYTE * len(data)
        if length > most:
            raise ValueError(
                f"{where}: {name!r} claims {length:,} bytes, deflated to {len(data):,}; "
                f"at most {most:,} are inflated from so few"
            )
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length + 1)
        except zlib.error as error:
            raise ValueError(f"{where}: {name!r}: {error}") from None
    if len(data) != length or zlib.crc32(data) != int(faces.columns["crc"][index]):
        raise ValueError(
            f"{where}: {name!r} has another length or checksum than the archive's directory says"
        )
    return data


def _scan(shards: list[str]) -> Arrays:
    folders: dict[bytes, int] = {}
    columns = scan_shards(shards, lambda path, left_out: _scan_shard(path, folders, left_out))
    folder = columns.pop("folder")
    return {**columns, **identity_columns(folder, folders, shards)}


def _scan_shard(path: str, folders: dict[bytes, int], left_out: LeftOut) -> Arrays:
    """Columns offset, size, stored, length, crc and folder of the images in one archive."""
    # zipfile holds the directory of one archive as Python objects: 2.8 s and 250 MB for 424,745
    # images. A parser in this file took a third of that, but 60 more statements. Only the first
    # opening of a set scans.
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            directory_at = archive.start_dir
            images = []
            for entry in archive.infolist():
                name = member_path(member_bytes(entry))
                if name and is_image(os.fsdecode(name)):
                    images.append((entry, name))
                elif name and not entry.is_dir():
                    left_out.add(SUFFIX, os.fsdecode(name))
        fields = (
            (entry.header_offset, entry.compress_size, entry.file_size, entry.CRC)
            for entry, _ in images
        )
        table = np.fromiter(fields, np.dtype((np.int64, 4)), len(images))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise ValueError(
            f"{path}: no zip directory can be read ({error}); not a zip file, or truncated"
        ) from None
    outside = next((name for _, name in images if b"/" not in name), None)
    if outside is not None:
        raise ValueError(f"{path}: image {outside!r} lies in no folder; expected IDENTITY/IMAGE")
    offset, stored, length, crc = table.T

    # One read gets a member's local header and its bytes. The header's length is not known, so the
    # read ends where the next image begins, or after the longest possible header.
    order = np.argsort(offset, kind="stable")
    span = np.empty_like(offset)
    span[order] = np.diff(offset[order], append=directory_at)
    longest = LOCAL_HEADER.size + LONGEST_NAME_AND_EXTRA + stored
    if (span <= 0).any():
        raise ValueError(f"{path}: directory with overlapping members")
    most = int(np.maximum(stored, length).max(initial=0))
    if most > MOST_IMAGE_BYTES:
        raise ValueError(f"{path}: an image of {most:,} bytes; the limit is {MOST_IMAGE_BYTES:,}")
    return {
        "offset": offset,
        "size": np.minimum(span, longest).astype(np.int32),
        "stored": stored.astype(np.int32),
        "length": length.astype(np.int32),
        "crc": crc.astype(np.uint32),
        "folder": number_folders((name for _, name in images), folders),
        "key": checksums(name + struct.pack("<I", entry.CRC) for entry, name in images),
    }
