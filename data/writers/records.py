"""Writes any FaceSet as an insightface record file.

The files are .rec, .idx and `property`, and `_names.txt` if the identities have names.
"""

import os
from pathlib import Path
from typing import IO

import numpy as np

from data.files import atomic_write
from data.formats._record_bytes import EXACT_LABELS, pack_image, pack_record, read_index
from data.names import is_hidden
from data.text import escape_name
from data.types import FaceSet
from data.writers._names import Progress

FLUSH_EVERY = 1000


def write_records(faces: FaceSet, path: str, *, size: tuple[int, int], progress: Progress) -> None:
    """Writes record 0, then the images sorted by label (keys 1…N), then the identity records.

    size: (height, width) for `property`.

    The encoded bytes are copied. Files are written as .partial and renamed at the end, and a call
    continues what a killed call has left. Raises ValueError if float32 labels cannot hold the keys,
    or if the folder holds another set, whose `property` would be replaced.
    """
    rec = Path(path)
    images, identities = len(faces), faces.num_classes
    last = 1 + images + identities
    declared, line = rec.with_name("property"), f"{identities},{size[0]},{size[1]}\n"
    _check_target(rec, declared, line)
    if last > EXACT_LABELS:
        raise ValueError(
            f"{rec}: {images} images and {identities} identities need keys above {EXACT_LABELS}, "
            "which the float32 key ranges of this format cannot hold; write zip or tar shards"
        )
    order = np.argsort(faces.labels, kind="stable")
    bounds = 1 + np.searchsorted(faces.labels[order], np.arange(identities + 1))

    def payload(key: int) -> bytes:
        if key == 0:
            return pack_image(b"", np.array([1 + images, last], np.float32), 0)
        if key > images:
            label = key - 1 - images
            return pack_image(b"", bounds[label : label + 2].astype(np.float32), key)
        index = int(order[key - 1])
        encoded = faces.read(index)
        if not encoded:
            raise ValueError(f"{faces.describe(index)}: zero-length image")
        return pack_image(encoded, float(faces.labels[index]), key)

    partial_rec = rec.with_name(f".{rec.stem}.rec.partial")
    partial_idx = rec.with_name(f".{rec.stem}.idx.partial")
    done, offset = _written_before(partial_rec, partial_idx, last)
    progress(done)
    mode = "r+b" if done else "wb"
    with open(partial_rec, mode) as records, open(partial_idx, mode) as index_file:
        records.truncate(offset)
        records.seek(offset)
        index_file.seek(0, os.SEEK_END)
        lines: list[str] = []
        for key in range(done, last):
            record = pack_record(payload(key))
            records.write(record)
            lines.append(f"{key}\t{offset}\n")
            offset += len(record)
            if len(lines) == FLUSH_EVERY:
                _flush(records, index_file, lines)
            progress(1)
        _flush(records, index_file, lines)
        os.fsync(records.fileno())
        os.fsync(index_file.fileno())

    with atomic_write(declared, "w") as text:
        text.write(line)
    names = getattr(faces, "names", None)
    if names is not None:
        rows = enumerate(zip(names, np.diff(bounds), strict=True))
        with atomic_write(rec.with_name(f"{rec.stem}_names.txt")) as file:
            for label, (name, count) in rows:
                file.write(f"{label}\t{escape_name(name)}\t{count}\n".encode())
    os.replace(partial_rec, rec)
    os.replace(partial_idx, rec.with_suffix(".idx"))


def _check_target(rec: Path, declared: Path, line: str) -> None:
    """Refuses a name without .rec, and a folder with a set whose `property` is not `line`."""
    if rec.suffix != ".rec":
        raise ValueError(f"{rec}: expected a name ending in .rec")
    others = sorted(
        other.name
        for other in rec.parent.glob("*.rec")
        if other != rec and not is_hidden(other.name)
    )
    if others and not (declared.exists() and declared.read_text().strip() == line.strip()):
        raise ValueError(
            f"{rec}: {others[0]} is in that folder, and a folder has one `property`, which says "
            "how many identities its set has; write into a folder of its own"
        )


def _flush(records: IO[bytes], index: IO[bytes], lines: list[str]) -> None:
    """Flushes the records first, so that an index line on disk always has its record."""
    records.flush()
    index.write("".join(lines).encode())
    index.flush()
    lines.clear()


def _written_before(rec: Path, idx: Path, last: int) -> tuple[int, int]:
    """(records that a killed call has written completely, their bytes); cuts the index to them."""
    if not (rec.exists() and idx.exists()):
        return 0, 0
    text = idx.read_bytes()
    idx.write_bytes(text[: text.rfind(b"\n") + 1])
    if idx.stat().st_size == 0:
        return 0, 0
    keys, offsets = read_index(str(idx))
    if (keys != np.arange(len(keys))).any() or len(keys) > last or offsets[-1] > rec.stat().st_size:
        return 0, 0

    # The last record is written again: its bytes may not have reached the file.
    with open(idx, "r+b") as file:
        file.truncate(text[: text.rfind(b"\n")].rfind(b"\n") + 1)
    return len(keys) - 1, int(offsets[-1])
