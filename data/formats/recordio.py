"""insightface record files: train.rec, train.idx and `property`, as MS1MV2/MS1MV3, Glint360K and
WebFace ship; plain im2rec too.

insightface's layout: record 0 carries labels [a, b); images are keys 1…a−1; keys a…b−1 are identity
records whose two labels are that identity's key range [start, end). Without such a record 0 every
key is an image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.files import PreadFile
from data.formats._index_cache import cached
from data.formats._record_bytes import (
    EXACT_LABELS,
    FIRST_READ,
    HEADER,
    read_headers,
    read_index,
    read_record,
    unpack_image,
    whole_image,
)

SPAN_LIMIT = 2**31 - 1


class RecordSet:
    """A FaceSet on one record file. Per image: key, offset and span (bytes up to the next record),
    as flat arrays.

    headers: records of the index that are no image. names: of the identities, where `_names.txt` is
    beside the file.
    """

    def __init__(
        self,
        file: PreadFile,
        keys: np.ndarray,
        offsets: np.ndarray,
        spans: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        headers: int,
        names: list[str] | None,
    ) -> None:
        self.file = file
        self.keys = keys
        self.offsets = offsets
        self.spans = spans
        self.labels = labels
        self.num_classes = num_classes
        self.headers = headers
        self.names = names

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The image's bytes; ValueError if the record is broken or carries another label than the
        set has for it."""
        offset, span, label = int(self.offsets[index]), int(self.spans[index]), self.labels[index]
        if span <= FIRST_READ:  # nearly every image: one read, one header, one slice
            data = self.file.read(offset, span)
            encoded = whole_image(data, float(label))
            if encoded is not None:
                return encoded
        payload = read_record(self.file, offset, offset + span, self.describe(index))
        labels, _, encoded = unpack_image(payload, self.describe(index))
        if labels[0] != label:
            raise ValueError(
                f"{self.describe(index)}: carries label {labels[0]:g}, the set has {label}"
            )
        return encoded

    def describe(self, index: int) -> str:
        return f"{self.file.path} key {int(self.keys[index])}"


def detect(path: str) -> bool:
    """A .rec file, or a folder that holds one."""
    return path.endswith(".rec") or (Path(path).is_dir() and any(Path(path).glob("*.rec")))


def open_set(path: str) -> RecordSet:
    """Opens a .rec file (or the one in a folder): reads the index and the identity records, images
    only when asked."""
    rec = _rec_file(Path(path))
    index = rec.with_suffix(".idx")
    if not index.is_file():
        raise FileNotFoundError(
            f"{index}: missing; {rec.name} cannot be read out of order without its index"
        )
    file = PreadFile(str(rec))
    keys, offsets = _index_by_key(str(index), file)
    ends = _ends(offsets, file.size)
    rows, labels = _from_identity_records(file, keys, offsets, ends)
    if labels is None:
        stored = cached(
            f"{rec}.labels.npz", [str(rec), str(index)], lambda: _scan(file, keys, offsets, rows)
        )
        rows, labels = stored["rows"], stored["labels"]
    declared = _declared_classes(rec.with_name("property"))
    return RecordSet(
        file=file,
        keys=keys[rows],
        offsets=offsets[rows],
        spans=np.minimum(ends[rows] - offsets[rows], SPAN_LIMIT).astype(np.int32),
        labels=labels.astype(np.int64),
        num_classes=(classes := int(labels.max(initial=-1)) + 1 if declared is None else declared),
        headers=len(keys) - len(labels),
        names=_names(rec.with_name(f"{rec.stem}_names.txt"), classes),
    )


def _rec_file(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        return path
    found = sorted(path.glob("*.rec"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(
            f"{path}: expected exactly one .rec file, found {names}; give the file's path"
        )
    return found[0]


def _declared_classes(path: Path) -> int | None:
    """num_classes of a `property` file (`num_classes,height,width`), None without one."""
    if not path.is_file():
        return None
    text = path.read_text().strip()
    try:
        return int(text.split(",")[0])
    except ValueError:
        raise ValueError(
            f"{path}: found {text[:60]!r}, expected `num_classes,height,width`"
        ) from None


def _names(path: Path, num_classes: int) -> list[str] | None:
    """Identity names of a `_names.txt` (lines LABEL<TAB>NAME<TAB>IMAGES), None without one of this
    set."""
    if not path.is_file():
        return None
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    if len(rows) != num_classes or any(
        len(row) < 2 or row[0] != str(label) for label, row in enumerate(rows)
    ):
        raise ValueError(
            f"{path}: expected lines LABEL<TAB>NAME<TAB>IMAGES of the labels 0…{num_classes - 1}"
        )
    return [row[1] for row in rows]


def _index_by_key(index: str, file: PreadFile) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets) int64 (K,) in rising order of keys, each offset within the file."""
    keys, offsets = read_index(index)
    steps = np.diff(keys)
    if (steps <= 0).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        steps = np.diff(keys)
        if (steps == 0).any():
            raise ValueError(f"{index}: key {int(keys[int((steps == 0).argmax())])} occurs twice")
    outside = (offsets < 0) | (offsets + 8 > file.size)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"{index}: key {int(keys[row])} points to byte {int(offsets[row])}, but {file.path} has {file.size} bytes; "
            "the .rec is truncated or the .idx belongs to another file"
        )
    return keys, offsets


def _ends(offsets: np.ndarray, size: int) -> np.ndarray:
    """Where the record after each one begins, int64 (K,)."""
    if (np.diff(offsets) > 0).all():
        return np.append(offsets[1:], size)
    order = np.argsort(offsets, kind="stable")
    following = np.append(offsets[order][1:], size)
    if (following <= offsets[order]).any():
        row = int((following <= offsets[order]).argmax())
        raise ValueError(
            f"index: two keys point to byte {int(offsets[order[row]])}; rebuild the .idx"
        )
    ends = np.empty_like(offsets)
    ends[order] = following
    return ends


def _from_identity_records(
    file: PreadFile, keys: np.ndarray, offsets: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray | slice | None, np.ndarray | None]:
    """(rows of the images, their labels float32) by record 0 and the identity records.

    Labels are None where the headers must be scanned, rows too where even record 0 is no help:
    there is none, or its float32 numbers lie where float32 skips integers. An identity's label is
    the one in its first and last image's header.
    """
    where = f"{file.path} key {int(keys[0])}"
    found, _, image = unpack_image(read_record(file, int(offsets[0]), int(ends[0]), where), where)
    if keys[0] != 0 or image or len(found) < 2 or not (np.abs(found[:2]) < EXACT_LABELS).all():
        return None, None
    first, last = int(found[0]), int(found[1])
    images, identities = np.searchsorted(keys, [first, last])
    if images != first or not 1 <= first <= last:
        raise ValueError(
            f"{where}: announces images 1…{first - 1} and identities {first}…{last - 1}, but the index has "
            f"{images - 1} images; the .idx is not of this file or is cut off"
        )
    rows = slice(1, first)
    if identities != last or first == last:
        return rows, None
    ranges = _ranges(file, offsets[first:last], ends[first:last])
    if ranges is None:
        return rows, None
    starts, stops = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))].T
    tiled = (
        starts[0] == 1
        and stops[-1] == first
        and (starts[1:] == stops[:-1]).all()
        and (stops >= starts).all()
    )
    if not tiled:
        return rows, None
    held = stops > starts
    starts, stops = starts[held], stops[held]
    labels = read_headers(file, offsets[starts])[0]
    if not (labels == read_headers(file, offsets[stops - 1])[0]).all():
        return rows, None
    return rows, _whole_labels(np.repeat(labels, stops - starts), file.path)


def _ranges(file: PreadFile, offsets: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """int64 (identities, 2) key ranges; None if a record among them is not an identity record."""
    size = 8 + HEADER.size + 8
    raw = b"".join(
        [file.read(o, min(size, file.size - o)).ljust(size, b"\0") for o in offsets.tolist()]
    )
    words = np.frombuffer(raw, "<u4").reshape(-1, size // 4)
    if (words[:, 1] != HEADER.size + 8).any() or (words[:, 2] != 2).any():
        return None
    ranges = words.view("<f4")[:, 8:10]
    return ranges.astype(np.int64) if (np.abs(ranges) < EXACT_LABELS).all() else None


def _scan(
    file: PreadFile, keys: np.ndarray, offsets: np.ndarray, rows: np.ndarray | slice | None
) -> dict[str, np.ndarray]:
    """Rows and labels by reading every header. Without known rows: all but record 0 and the
    identity records."""
    labels, flags, lengths = read_headers(file, offsets)
    if rows is None:
        marker = keys[0] == 0 and flags[0] == 2 and lengths[0] == 0
        chosen = (
            np.flatnonzero(~((flags == 2) & (lengths == 0))) if marker else np.arange(len(keys))
        )
    else:
        chosen = np.arange(len(keys))[rows]
    return {"rows": chosen, "labels": _whole_labels(labels[chosen], file.path).astype(np.int32)}


def _whole_labels(labels: np.ndarray, path: str) -> np.ndarray:
    broken = ~(np.abs(labels) < EXACT_LABELS) | (labels != np.rint(labels))
    if broken.any():
        row = int(broken.argmax())
        raise ValueError(
            f"{path}: image {row} has label {labels[row]}, expected a whole number below {EXACT_LABELS}"
        )
    return labels
