"""Reads every image of a face set and says what is wrong with it: python -m tools.verify PATH
[--size 112] [--json].

Finds: a set that cannot be opened (truncated, bad index), broken records, records without an index
line, undecodable images, images of another size than most (or than --size), labels without an
image, exact duplicates within an identity and across identities. Exit code 0 clean, 1 something
found, 2 no such set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data.decode import decode_any
from data.faces import detect_format, open_faces
from data.formats._record_bytes import FRAME, LONGEST_SEGMENT, MAGIC
from data.formats.recordio import RecordSet
from data.types import FaceSet
from tools.progress import bar

AT_ONCE = 4096


@dataclass(frozen=True)
class Finding:
    """kind: one word; where: file and key; what: one sentence."""

    kind: str
    where: str
    what: str


def verify(
    path: str, *, form: str = "auto", size: int | None = None, threads: int = 8
) -> list[Finding]:
    """All findings of the set, in the order of its images. FileNotFoundError without one."""
    form = detect_format(path) if form == "auto" else form
    try:
        faces = open_faces(path, form, check=False)
    except ValueError as error:
        return [Finding("unopenable", path, str(error))]
    print(f"{path}: {form}, {len(faces)} images, {faces.num_classes} identities", file=sys.stderr)
    findings = _labels(faces, path)
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

    with ThreadPoolExecutor(threads) as pool, bar(len(faces), "reading") as advance:
        for start in range(0, len(faces), AT_ONCE):
            chunk = range(start, min(start + AT_ONCE, len(faces)))
            findings += [found for found in pool.map(look, chunk) if found is not None]
            advance(len(chunk))
    return findings + _sizes(faces, sizes, size) + _duplicates(faces, hashes)


def _labels(faces: FaceSet, path: str) -> list[Finding]:
    findings = []
    counts = np.bincount(faces.labels[faces.labels >= 0], minlength=faces.num_classes)
    for label in np.flatnonzero(counts[faces.num_classes :]).tolist():
        what = f"label {faces.num_classes + label} in a set of {faces.num_classes} identities"
        findings.append(Finding("label", path, what))
    for index in np.flatnonzero(faces.labels < 0).tolist():
        findings.append(
            Finding("label", faces.describe(index), f"negative label {faces.labels[index]}")
        )
    for label in np.flatnonzero(counts[: faces.num_classes] == 0).tolist():
        findings.append(Finding("gap", path, f"identity {label} has no image"))
    return findings


def _unindexed(faces: RecordSet) -> list[Finding]:
    """Records in the file that no index line points to, by walking it from frame to frame."""
    findings: list[Finding] = []
    file = faces.file
    starts = set(faces.offsets.tolist())
    unknown, at = 0, 0
    while at < file.size:
        raw = file.read(at, min(FRAME.size, file.size - at))
        magic, word = FRAME.unpack(raw) if len(raw) == FRAME.size else (0, 0)
        if magic != MAGIC:
            findings.append(
                Finding(
                    "magic", f"{file.path} at byte {at}", "no record begins here; the walk stops"
                )
            )
            break
        length = word & LONGEST_SEGMENT
        if word >> 29 in (0, 1) and at not in starts:
            unknown += 1
        at += FRAME.size + length + -length % 4
        if at > file.size + 3:
            findings.append(
                Finding("truncated", f"{file.path} at byte {at}", "the last record is cut off")
            )
    headers = faces.headers
    if unknown != headers:
        what = f"{unknown} records are not images of the index, expected {headers} (record 0 and identities)"
        findings.append(Finding("index", file.path, what))
    return findings


def _sizes(faces: FaceSet, sizes: np.ndarray, size: int | None) -> list[Finding]:
    known = Counter(map(tuple, sizes[sizes[:, 0] > 0].tolist()))
    if not known:
        return []
    usual = (size, size) if size else known.most_common(1)[0][0]
    odd = np.flatnonzero((sizes[:, 0] > 0) & (sizes != usual).any(1)).tolist()
    expected = f"{usual[0]}×{usual[1]}"
    return [
        Finding(
            "size",
            faces.describe(index),
            f"{sizes[index][0]}×{sizes[index][1]} pixels, expected {expected}",
        )
        for index in odd
    ]


def _duplicates(faces: FaceSet, hashes: np.ndarray) -> list[Finding]:
    keys = hashes.view("V16")[:, 0]
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    findings = []
    for place in np.flatnonzero(same).tolist():
        first, second = sorted((int(order[place]), int(order[place + 1])))
        if not hashes[first].any():
            continue  # could not be read
        across = faces.labels[first] != faces.labels[second]
        whose = (
            f"identities {faces.labels[first]} and {faces.labels[second]}"
            if across
            else "one identity"
        )
        what = f"the same bytes as {faces.describe(first)} ({whose})"
        findings.append(Finding("duplicate", faces.describe(second), what))
    return findings


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path")
    parser.add_argument("--format", default="auto")
    parser.add_argument(
        "--size", type=int, help="side that every image should have (default: the commonest)"
    )
    parser.add_argument("--json", action="store_true", help="print counts as one JSON line last")
    options = parser.parse_args(argv)
    try:
        findings = verify(options.path, form=options.format, size=options.size)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for found in findings:
        print(f"{found.kind}: {found.where}: {found.what}")
    counts = Counter(found.kind for found in findings)
    print(
        ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        or "nothing wrong found"
    )
    if options.json:
        print(json.dumps({"findings": len(findings), **counts}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
