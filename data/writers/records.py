"""Writes any FaceSet as an insightface record file.

The files are .rec, .idx and `property`, and `_names.txt` if the identities have names.
"""

import os
from pathlib import Path

import numpy as np

from data.files import atomic_write
from data.formats._record_bytes import EXACT_LABELS, pack_image, pack_record, read_index
from data.names import is_hidden
from data.order import NOT_AT_RANDOM
from data.text import escape_name
from data.types import FaceSet
from data.writers._bad import BadImages, read_numbers, write_numbers
from data.writers._names import Progress

FLUSH_EVERY = 1000


def write_records(
    faces: FaceSet,
    path: str,
    *,
    size: tuple[int, int],
    progress: Progress,
    bad: BadImages | None = None,
) -> None:
    """Writes record 0, then the images sorted by label (keys 1…N), then the identity records.

    size: (height, width) for `property`.

    The encoded bytes are copied. Files are written as .partial and renamed at the end, and a call
    continues what an earlier one has left. Bad images are noted in `bad` and get no key. If they
    may not be skipped the files stay .partial, and a later call looks at them again. Raises
    ValueError if float32 labels cannot hold the keys, or if the folder holds another set, whose
    `property` would be replaced.
    """
    rec = Path(path)
    bad = bad or BadImages(faces)
    images, identities = len(faces), faces.num_classes
    declared, line = rec.with_name("property"), f"{identities},{size[0]},{size[1]}\n"
    _check_target(rec, declared, line)
    if 1 + images + identities > EXACT_LABELS:
        raise ValueError(
            f"{rec}: {images} images and {identities} identities need keys above {EXACT_LABELS}, "
            "which the float32 key ranges of this format cannot hold; write zip or tar shards"
        )
    order = np.argsort(faces.labels, kind="stable")
    if getattr(faces, "blocks", None) is not None and (np.diff(order) < 0).any():
        raise ValueError(
            f"{rec}: a record file is written by identity, but {NOT_AT_RANDOM}, and a record file "
            "from that"
        )
    part = _Partial(rec)
    missed = part.resume(order, bad)
    progress(part.records)
    with part:
        if not part.records:
            part.add(_header(images, identities))
        for place in range(part.images + len(missed), images):
            index = int(order[place])
            encoded = bad.read(index)
            if encoded is None:
                missed.append(place)
                part.note(place, bad.found[index])
            else:
                part.add(pack_image(encoded, float(faces.labels[index]), part.records))
            progress(1)
        if not bad.may_finish(missed):
            return
        labels = np.delete(faces.labels[order], missed)
        bounds = 1 + np.searchsorted(labels, np.arange(identities + 1))
        for label in range(identities):
            part.add(pack_image(b"", bounds[label : label + 2].astype(np.float32), part.records))
            progress(1)
        part.replace_first(_header(len(labels), identities))

    with atomic_write(declared, "w") as text:
        text.write(line)
    names = getattr(faces, "names", None)
    if names is not None:
        rows = enumerate(zip(names, np.diff(bounds), strict=True))
        with atomic_write(rec.with_name(f"{rec.stem}_names.txt")) as file:
            for label, (name, count) in rows:
                file.write(f"{label}\t{escape_name(name)}\t{count}\n".encode())
    part.publish()


def _header(images: int, identities: int) -> bytes:
    """The payload of record 0."""
    keys = np.array([1 + images, 1 + images + identities], np.float32)
    return pack_image(b"", keys, 0)


class _Partial:
    """The files that a call writes and a later one continues: records, index, and bad images.

    records, images: how many of them are in the files. Lines of the list of bad images are
    PLACE<TAB>REASON, where the place counts the images in the order in which they are written.
    """

    def __init__(self, rec: Path) -> None:
        self.rec = rec
        self.paths = [
            rec.with_name(f".{rec.stem}.{suffix}.partial") for suffix in ("rec", "idx", "bad")
        ]
        self.records = self.bytes = 0
        self.lines: list[str] = []
        self.notes: list[str] = []

    @property
    def images(self) -> int:
        return max(self.records - 1, 0)

    def resume(self, order: np.ndarray, bad: BadImages) -> list[int]:
        """Finds what an earlier call has left, cuts the rest, and returns the bad places before it.

        order: the images (N,) by place. A place whose image was bad and is not any more, and all
        after it, are written again. So is the last record: its bytes may not have reached the file.
        """
        rec, idx, listed = self.paths
        missed = read_numbers(listed)
        offsets = _offsets(rec, idx)
        self.records = min(max(len(offsets) - 1, 0), 1 + len(order) - len(missed))
        kept = 0
        for place in missed:
            # `kept` bad images are before this one, and the other images before it are written.
            if place - kept >= self.images or place >= len(order):
                break
            if bad.read(int(order[place])) is not None:
                self.records = 1 + place - kept
                break
            kept += 1
        missed = missed[:kept]
        if self.records:
            self.bytes = int(offsets[self.records])
            lines = "".join(f"{key}\t{at}\n" for key, at in enumerate(offsets[: self.records]))
            idx.write_text(lines)
        write_numbers(listed, {place: bad.found[int(order[place])] for place in missed})
        return missed

    def __enter__(self) -> "_Partial":
        mode = "r+b" if self.records else "wb"
        rec, idx, listed = self.paths
        self.files = [open(rec, mode), open(idx, mode), open(listed, "ab")]
        self.files[0].truncate(self.bytes)
        self.files[0].seek(self.bytes)
        self.files[1].seek(0, os.SEEK_END)
        return self

    def add(self, payload: bytes) -> None:
        record = pack_record(payload)
        self.files[0].write(record)
        self.lines.append(f"{self.records}\t{self.bytes}\n")
        self.bytes += len(record)
        self.records += 1
        if len(self.lines) == FLUSH_EVERY:
            self._flush()

    def note(self, place: int, why: str) -> None:
        self.notes.append(f"{place}\t{why}\n")

    def replace_first(self, payload: bytes) -> None:
        self.files[0].seek(0)
        self.files[0].write(pack_record(payload))

    def _flush(self) -> None:
        """Flushes the index last: a line there always has its record, and the bad images before."""
        rec, idx, listed = self.files
        listed.write("".join(self.notes).encode())
        listed.flush()
        rec.flush()
        idx.write("".join(self.lines).encode())
        idx.flush()
        self.notes.clear()
        self.lines.clear()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                for file in self.files:
                    os.fsync(file.fileno())
        finally:
            for file in self.files:
                file.close()

    def publish(self) -> None:
        """Gives the files their names; the list of bad images goes."""
        rec, idx, listed = self.paths
        os.replace(rec, self.rec)
        os.replace(idx, self.rec.with_suffix(".idx"))
        listed.unlink()


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


def _offsets(rec: Path, idx: Path) -> list[int]:
    """The offsets of the records that are complete in the files of an earlier call."""
    if not (rec.exists() and idx.exists()):
        return []
    text = idx.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if not whole:
        return []
    idx.write_bytes(whole)
    keys, offsets = read_index(str(idx))
    if (keys != np.arange(len(keys))).any() or offsets[-1] > rec.stat().st_size:
        return []
    return [int(offset) for offset in offsets]
