"""Reads every image of a face set, and names each fault on one line.

    python -m tools.verify FACES

Faults are: a set that cannot be opened, broken records, records without a line in the index, images
that cannot be decoded, images of another size than most (or than --size), labels without an image,
and exact duplicates, within an identity or across two. Exit code 1: there are faults.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data.decode import decode_any
from data.faces import FORMATS, detect_format, open_faces
from data.formats._record_index import walk
from data.formats.recordio import RecordSet
from data.options import Count
from data.parts import find_part
from data.text import one_line
from data.types import FaceSet
from tools._cli import Failed, command
from tools._progress import progress_bar

AT_ONCE = 4096  # images between two moves of the progress bar
SHOWN = 8  # labels on one line


@dataclass(frozen=True)
class Finding:
    """A fault: its kind in one word, where it is (file and key), and a sentence about it."""

    kind: str
    where: str
    what: str


def verify(
    path: str, *, form: str = "auto", size: int | None = None, threads: int = 8
) -> list[Finding]:
    """All faults of the set, in the order of its images; FileNotFoundError if there is no set.

    size: side in pixels that every image should have, None for the most frequent one.
    """
    form = detect_format(path) if form == "auto" else form
    find_part(FORMATS, form)  # a wrong name is a wrong argument, not a fault of the set
    try:
        faces = open_faces(path, form, check=False)
    except ValueError as error:
        return [Finding("unopenable", path, str(error))]
    print(f"{path}: {form}, {len(faces)} images, {faces.num_classes} identities", file=sys.stderr)
    findings = list(_labels(faces, path))
    if isinstance(faces, RecordSet):
        findings += _unindexed(faces)
    hashes = np.zeros((len(faces), 16), np.uint8)
    sizes = np.zeros((len(faces), 2), np.int32)

    def look(index: int) -> Finding | None:
        try:
            encoded = faces.read(index)
        except (ValueError, OSError) as error:
            return Finding("unreadable", faces.describe(index), str(error))
        hashes[index] = np.frombuffer(hashlib.blake2b(encoded, digest_size=16).digest(), np.uint8)
        try:
            sizes[index] = decode_any(encoded).shape[:2]
        except ValueError as error:
            return Finding("undecodable", faces.describe(index), str(error))
        return None

    with ThreadPoolExecutor(threads) as executor, progress_bar(len(faces), "reading") as advance:
        for start in range(0, len(faces), AT_ONCE):
            chunk = range(start, min(start + AT_ONCE, len(faces)))
            findings += filter(None, executor.map(look, chunk))
            advance(len(chunk))
    return [*findings, *_sizes(faces, sizes, size), *_duplicates(faces, hashes)]


def _labels(faces: FaceSet, path: str) -> Iterator[Finding]:
    """Labels outside 0…num_classes - 1, and labels that no image has, each kind on one line."""
    classes = faces.num_classes
    outside = np.flatnonzero((faces.labels < 0) | (faces.labels >= classes))
    if len(outside):
        which = f"labels outside 0…{classes - 1}: {_some(np.unique(faces.labels[outside]))}"
        where = faces.describe(int(outside[0]))
        yield Finding("label", where, f"this and {len(outside) - 1:,} other images have {which}")
    inside = np.delete(faces.labels, outside) if len(outside) else faces.labels
    empty = np.flatnonzero(np.bincount(inside, minlength=classes) == 0)
    if len(empty):
        counts = f"{classes - len(empty):,} of {classes:,} identities have images"
        yield Finding("gap", path, f"{counts}; without: {_some(empty)}")


def _some(labels: np.ndarray) -> str:
    """The first of many labels, in rising order: `1, 2, 3, … 99999`."""
    shown = ", ".join(map(str, labels[:SHOWN].tolist()))
    return shown if len(labels) <= SHOWN else f"{shown}, … {labels[-1]}"


def _unindexed(faces: RecordSet) -> Iterator[Finding]:
    """Records that no line of the index points to, found by walking from frame to frame."""
    file, indexed = faces.file, set(faces.offsets.tolist())
    for key in faces.broken.tolist():
        yield Finding("unreadable", f"{file.path} key {key}", "no whole record with a label")
    unknown = 0
    try:
        for at, _ in walk(file):
            unknown += at not in indexed
    except ValueError as error:
        yield Finding("frame", file.path, str(error).removeprefix(f"{file.path} "))
        return
    if unknown != faces.headers:
        what = f"{unknown} records are not images of the index"
        expected = f"expected {faces.headers} (record 0 and identities)"
        yield Finding("index", file.path, f"{what}, {expected}")


def _sizes(faces: FaceSet, sizes: np.ndarray, size: int | None) -> Iterator[Finding]:
    """Decoded images whose height and width (N,2) are not the expected ones."""
    known = Counter(map(tuple, sizes[sizes[:, 0] > 0].tolist()))
    if not known:
        return
    usual = (size, size) if size else known.most_common(1)[0][0]
    for index in np.flatnonzero((sizes[:, 0] > 0) & (sizes != usual).any(1)).tolist():
        height, width = sizes[index]
        what = f"{height}×{width} pixels, expected {usual[0]}×{usual[1]}"
        yield Finding("size", faces.describe(index), what)


def _duplicates(faces: FaceSet, hashes: np.ndarray) -> Iterator[Finding]:
    """Images with equal hashes, uint8 (N,16). The hash of an unreadable image is zero."""
    keys = hashes.view("V16")[:, 0]
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    for place in np.flatnonzero(same).tolist():
        first, second = sorted((int(order[place]), int(order[place + 1])))
        if hashes[first].any():
            one, other = faces.labels[first], faces.labels[second]
            whose = "one identity" if one == other else f"identities {one} and {other}"
            what = f"the same bytes as {faces.describe(first)} ({whose})"
            yield Finding("duplicate", faces.describe(second), what)


def run(faces: str, *, format: str = "auto", size: Count | None = None) -> dict[str, int]:
    """Look for faults in one face set.

    faces: any face set.
    format: format of FACES, needed only if FACES could be read in several formats.
    size: side in pixels that every image should have (default: the most frequent side).
    """
    findings = verify(faces, form=format, size=size)
    for found in findings:
        print(one_line(f"{found.kind}: {found.where}: {found.what}"))
    counts = Counter(found.kind for found in findings)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(shown or "no faults")
    record = {"findings": len(findings), **counts}
    if findings:
        raise Failed(f"{faces}: {len(findings)} fault(s)", record)
    return record


main = command(run)
