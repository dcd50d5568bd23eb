"""insightface record files: train.rec, train.idx and `property`.

MS1MV2, MS1MV3, Glint360K and WebFace come in this form. Files of plain im2rec are read as well.

In insightface's layout record 0 carries two labels [a, b). Images have the keys 1…a-1. Keys a…b-1
are identity records, whose two labels are the key range [start, end) of that identity. Without such
a record 0 every key is an image.
"""

import logging
from pathlib import Path

import numpy as np

from data.files import PreadFile, read_file, read_lines
from data.formats._index_cache import Arrays, is_column, load_or_scan, within
from data.formats._packed import detect_shards, list_shards
from data.formats._record_bytes import (
    BROKEN,
    EXACT_LABELS,
    FIRST_READ,
    FRAME,
    HEADER,
    LONGEST_SEGMENT,
    MAGIC,
    image_of_whole_record,
    read_headers,
    read_index,
    read_record,
    unpack_image,
)
from data.formats._record_index import index_agrees, scan_records
from data.limits import MOST_IDENTITIES
from data.names import LANDMARKS
from data.text import decode_text, unescape_name
from data.types import Int64

log = logging.getLogger(__name__)
SPAN_LIMIT = 2**31 - 1
REMAKE = "move it away, and write it again with: python -m tools.convert {} {}"
LONGEST_PROPERTY = 4096  # bytes


class RecordSet:
    """A FaceSet on one record file. Arrays (N,) hold key, offset and span of each image.

    spans: bytes from the beginning of a record to the beginning of the next.
    headers: number of records in the index that are not images.
    broken: keys of the records that no label could be read from, and that the set leaves out.
    names: names of the identities, if `_names.txt` lies beside the file.
    """

    def __init__(
        self,
        file: PreadFile,
        keys: Int64,
        offsets: Int64,
        spans: np.ndarray,
        labels: Int64,
        num_classes: int,
        headers: int,
        names: list[str] | None,
        broken: Int64,
    ) -> None:
        self.file = file
        self.keys = keys
        self.offsets = offsets
        self.spans = spans
        self.labels = labels
        self.num_classes = num_classes
        self.headers = headers
        self.names = names
        self.broken = broken

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def landmarks_file(self) -> str:
        return f"{self.file.path}.{LANDMARKS}"

    def read(self, index: int) -> bytes:
        """The image's bytes; ValueError if the record is broken or its label is not the set's."""
        offset, span, label = int(self.offsets[index]), int(self.spans[index]), self.labels[index]
        if span <= FIRST_READ:  # nearly every image: one read, one header, one slice
            data = self.file.read(offset, span)
            encoded = image_of_whole_record(data, float(label))
            if encoded is not None:
                return encoded
        where = self.describe(index)
        payload = read_record(self.file, offset, offset + span, where)
        labels, _, encoded = unpack_image(payload, where)
        if labels[0] != label:
            raise ValueError(f"{where}: carries label {labels[0]:g}, the set has {label}")
        return encoded

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.keys, self.spans

    def describe(self, index: int) -> str:
        return f"{self.file.path} key {int(self.keys[index])}"


def detect(path: str) -> bool:
    """Whether the path is a .rec file or a folder that holds one."""
    return detect_shards(path, ".rec")


def open_set(path: str) -> RecordSet:
    """Opens a .rec file, or the one in a folder; reads the index and the identity records only.

    Without an .idx file the index is made again from the records, which reads the whole file once.
    """
    rec = rec_file(path)
    index = rec.with_suffix(".idx")
    file = PreadFile(str(rec))
    there = index.is_file()
    keys, offsets = _in_order(*(_read if there else _remade)(index, file), index, file)
    _check_index(file, keys, offsets, index)
    ends = _ends(offsets, file.size)
    rows, labels = _from_identity_records(file, keys, offsets, ends)
    broken = np.zeros(0, np.int64)
    if labels is None:
        stored = load_or_scan(
            f"{rec}.labels.npz",
            [str(rec), str(index)] if there else [str(rec)],
            lambda: _scan(file, keys, offsets, rows, index),
            lambda arrays: _labels_agree(arrays, len(keys), rows),
        )
        rows, labels = stored["rows"], stored["labels"]
        broken = stored.get("broken", broken)
        if len(broken):
            log.warning(
                "%s: %d records are broken and left out, the first has the key %d",
                rec,
                len(broken),
                keys[broken[0]],
            )
    classes = _declared_classes(rec.with_name("property"))
    if classes is None:
        classes = int(labels.max(initial=-1)) + 1
    return RecordSet(
        file=file,
        keys=keys[rows],
        offsets=offsets[rows],
        spans=np.minimum(ends[rows] - offsets[rows], SPAN_LIMIT).astype(np.int32),
        labels=labels.astype(np.int64),
        num_classes=classes,
        headers=len(keys) - len(labels) - len(broken),
        names=_names(rec.with_name(f"{rec.stem}_names.txt"), classes),
        broken=keys[broken],
    )


def rec_file(path: str) -> Path:
    """The .rec file itself, or the one in a folder."""
    found = list_shards(path, ".rec")
    if len(found) != 1:
        names = ", ".join(Path(file).name for file in found)
        raise ValueError(
            f"{path}: expected exactly one .rec file, found {names}; give the file's path"
        )
    return Path(found[0])


def _declared_classes(path: Path) -> int | None:
    """num_classes of a `property` file (`num_classes,height,width`); None without the file."""
    if not path.is_file():
        return None
    text = decode_text(read_file(path, LONGEST_PROPERTY), str(path)).strip()
    digits = text.split(",")[0].strip()
    try:
        classes = int(digits)
    except ValueError:
        raise ValueError(
            f"{path}: found {text[:60]!r}, expected `num_classes,height,width`"
        ) from None
    if not 0 <= classes <= MOST_IDENTITIES:
        raise ValueError(f"{path}: found {digits[:40]} identities, expected 0…{MOST_IDENTITIES:,}")
    return classes


def _names(path: Path, num_classes: int) -> list[str] | None:
    """Identity names of a `_names.txt`; None without the file.

    Lines are LABEL<TAB>NAME<TAB>IMAGES. NAME is written by `escape_name`.
    """
    if not path.is_file():
        return None
    rows = [line.split("\t") for line in read_lines(path) if line]
    labels = [row[0] for row in rows if len(row) >= 2]
    if labels != [str(label) for label in range(num_classes)] or len(rows) != num_classes:
        raise ValueError(
            f"{path}: expected lines LABEL<TAB>NAME<TAB>IMAGES of the labels 0…{num_classes - 1}"
        )
    return [unescape_name(row[1]) for row in rows]


def _read(index: Path, file: PreadFile) -> tuple[Int64, Int64]:
    """(keys, offsets) int64 (K,) from the .idx file."""
    return read_index(str(index), file.size)


def _remade(index: Path, file: PreadFile) -> tuple[Int64, Int64]:
    """(keys, offsets) int64 (K,) from the records, kept beside them where that is possible."""
    log.warning(
        "%s: missing, so the index is made again from the records; python -m tools.convert %s %s "
        "writes it",
        index,
        file.path,
        index,
    )
    arrays = load_or_scan(
        f"{file.path}.index.npz",
        [file.path],
        lambda: scan_records(file),
        lambda stored: index_agrees(stored, file.size),
    )
    return arrays["keys"], arrays["offsets"]


def _in_order(keys: Int64, offsets: Int64, index: Path, file: PreadFile) -> tuple[Int64, Int64]:
    """(keys, offsets) int64 (K,) in rising order of keys, each offset within the file."""
    if (np.diff(keys) <= 0).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.diff(keys) == 0
        if twice.any():
            raise ValueError(f"{index}: key {int(keys[twice.argmax()])} occurs twice")
    outside = (offsets < 0) | (offsets > file.size - FRAME.size)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"{index}: key {int(keys[row])} points to byte {int(offsets[row])}, "
            f"but {file.path} has {file.size} bytes; "
            "the .rec is truncated or the .idx belongs to another file"
        )
    return keys, offsets


def _check_index(file: PreadFile, keys: Int64, offsets: Int64, index: Path) -> None:
    """ValueError if the file is cut off, or if the index has lost the header record, key 0."""
    last = int(offsets.argmax())
    word = FRAME.unpack(file.read(int(offsets[last]), FRAME.size))
    end = int(offsets[last]) + FRAME.size + (word[1] & LONGEST_SEGMENT)
    if word[0] == MAGIC and end > file.size:
        raise ValueError(
            f"{file.path}: the record of key {int(keys[last])} at byte {int(offsets[last])} is cut "
            f"off at byte {file.size}; the file is truncated"
        )
    if keys[0] == 0 or not offsets.min():
        return
    try:
        where = f"{file.path} at byte 0"
        found, _, image = unpack_image(read_record(file, 0, int(offsets.min()), where), where)
    except ValueError:
        return
    if len(found) >= 2 and not image:
        raise ValueError(
            f"{index}: lacks key 0, the record at byte 0, which says which records are images; "
            + REMAKE.format(file.path, index)
        )


def _ends(offsets: Int64, size: int) -> Int64:
    """The offset of the record after each record, int64 (K,)."""
    if (np.diff(offsets) > 0).all():
        return np.append(offsets[1:], size)
    order = np.argsort(offsets, kind="stable")
    following = np.append(offsets[order][1:], size)
    same = following <= offsets[order]
    if same.any():
        byte = int(offsets[order[same.argmax()]])
        raise ValueError(f"index: two keys point to byte {byte}; rebuild the .idx")
    ends = np.empty_like(offsets)
    ends[order] = following
    return ends


def _from_identity_records(
    file: PreadFile, keys: Int64, offsets: Int64, ends: Int64
) -> tuple[Int64 | slice | None, np.ndarray | None]:
    """(rows of the images, their labels float32), from record 0 and the identity records.

    Labels are None if the headers of all images must be scanned. Rows are None too if record 0 does
    not help: it is missing, or its numbers are too large for float32 to hold them exactly. The
    label of an identity is the one in the headers of its first and its last image.
    """
    where = f"{file.path} key {int(keys[0])}"
    try:
        record = read_record(file, int(offsets[0]), int(ends[0]), where)
        found, _, image = unpack_image(record, where)
    except ValueError:
        return None, None  # the scan tells whether this record alone is broken
    if keys[0] != 0 or image or len(found) < 2 or not (np.abs(found[:2]) < EXACT_LABELS).all():
        return None, None
    first, last = int(found[0]), int(found[1])
    images, identities = np.searchsorted(keys, [first, last])
    if images != first or not 1 <= first <= last:
        raise ValueError(
            f"{where}: announces images 1…{first - 1} and identities {first}…{last - 1}, "
            f"but the index has {images - 1} images; the .idx is not of this file or is cut off; "
            + REMAKE.format(file.path, Path(file.path).with_suffix(".idx"))
        )
    rows = slice(1, first)
    if identities != last or first == last:
        return rows, None
    ranges = _key_ranges(file, offsets[first:last])
    if ranges is None:
        return rows, None

    # The ranges must cover the keys of all images without a gap or an overlap.
    starts, stops = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))].T
    complete = starts[0] == 1 and stops[-1] == first
    if not complete or (starts[1:] != stops[:-1]).any() or (stops < starts).any():
        return rows, None
    held = stops > starts
    starts, stops = starts[held], stops[held]

    # The identity's first and last image confirm each other.
    labels, flags, _ = read_headers(file, offsets[starts])
    last_labels, last_flags, _ = read_headers(file, offsets[stops - 1])
    if (labels != last_labels).any() or (np.minimum(flags, last_flags) == BROKEN).any():
        return rows, None
    return rows, _whole_labels(np.repeat(labels, stops - starts), file.path)


def _key_ranges(file: PreadFile, offsets: Int64) -> Int64 | None:
    """int64 (identities, 2) key ranges; None if one of the records is not an identity record."""
    size = FRAME.size + HEADER.size + 8
    words = np.frombuffer(file.read_padded(offsets.tolist(), size), "<u4").reshape(-1, size // 4)
    if (words[:, 1] != HEADER.size + 8).any() or (words[:, 2] != 2).any():
        return None
    ranges = words.view("<f4")[:, 8:10]
    return ranges.astype(np.int64) if (np.abs(ranges) < EXACT_LABELS).all() else None


def _scan(
    file: PreadFile, keys: Int64, offsets: Int64, rows: Int64 | slice | None, index: Path
) -> Arrays:
    """`rows` and `labels` of all images, from the headers of all records, and the `broken` rows.

    rows: rows of the images. None stands for all records but record 0 and the identity records.
    """
    labels, flags, lengths = read_headers(file, offsets)
    if 2 * np.count_nonzero(flags == BROKEN) > len(keys):
        row = int((flags == BROKEN).argmax())
        raise ValueError(
            f"{index}: key {int(keys[row])} points to byte {int(offsets[row])}, where no record "
            f"begins, and so do most keys; it is the index of another file than {file.path}; "
            + REMAKE.format(file.path, index)
        )
    chosen = np.arange(len(keys))
    if rows is not None:
        chosen = chosen[rows]
    elif keys[0] == 0 and (flags[0] == BROKEN or (flags[0] == 2 and lengths[0] == 0)):
        chosen = np.flatnonzero((flags != 2) | (lengths != 0))
    whole = flags[chosen] != BROKEN
    broken, chosen = chosen[~whole], chosen[whole]
    whole_labels = _whole_labels(labels[chosen], file.path).astype(np.int32)
    return {"rows": chosen, "labels": whole_labels, "broken": broken}


def _labels_agree(stored: Arrays, records: int, rows: Int64 | slice | None) -> bool:
    """Whether a stored `_scan` names rows of the index in rising order, with labels for the whole.

    records: number of records in the index. rows: the rows of the images if they are known.
    """
    found, labels = stored["rows"], stored["labels"]
    count = len(labels)
    if not is_column(found, count, "i") or not is_column(labels, count, "i"):
        return False
    if not within(found, 0, records) or not within(np.abs(labels), 0, EXACT_LABELS):
        return False
    broken = stored.get("broken", np.zeros(0, np.int64))  # earlier versions wrote none
    if not is_column(broken, len(broken), "i") or not within(broken, 0, records):
        return False
    if rows is not None:
        return np.array_equal(np.union1d(found, broken), np.arange(records)[rows])
    return bool((np.diff(found) > 0).all())


def _whole_labels(labels: np.ndarray, path: str) -> np.ndarray:
    """The labels; ValueError unless all are whole numbers that float32 holds exactly."""
    broken = ~(np.abs(labels) < EXACT_LABELS) | (labels != np.rint(labels))
    if broken.any():
        row = int(broken.argmax())
        raise ValueError(
            f"{path}: image {row} has label {labels[row]}, "
            f"expected a whole number below {EXACT_LABELS}"
        )
    return labels
