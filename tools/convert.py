"""Face sets from one format to another, losslessly: encoded images are copied byte by byte.

    python -m tools.convert SOURCE TARGET.rec                 insightface record file with .idx and
    property
    python -m tools.convert SOURCE TARGET.zip | TARGET.tar    one file; with --shard 100000 a folder
    of them
    python -m tools.convert SOURCE FOLDER                     a folder per identity
    python -m tools.convert IMAGES TARGET.bin --pairs P.txt   verification .bin from a pair list and
    its images

SOURCE is anything that data.faces.open_faces takes. What a killed call had written is continued,
and a file appears under its name only when it is whole.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from data.decode import decode_any
from data.faces import detect_format, open_faces
from data.pairs.lists import from_list
from data.pairs.verification_bin import write_bin
from data.types import FaceSet
from data.writers.folder import write_folder
from data.writers.records import write_records
from data.writers.shards import write_shards
from tools._progress import bar

KINDS = ("rec", "zip", "tar", "bin", "folder")


def convert(source: str, target: str, *, kind: str, form: str, shard: int) -> None:
    """Writes the set at `source` as `target`."""
    form = detect_format(source) if form == "auto" else form
    faces = open_faces(source, form)
    print(f"{source}: {form}, {len(faces)} images, {faces.num_classes} identities")
    _say_what_changes(faces, kind)
    with bar(len(faces), f"writing {kind}") as advance:
        if kind == "rec":
            height, width = decode_any(faces.read(0)).shape[:2]
            write_records(faces, target, size=(height, width), progress=advance)
        elif kind == "folder":
            write_folder(faces, target, progress=advance)
        else:
            write_shards(faces, target, kind=kind, shard=shard, progress=advance)
    print(f"wrote {target}")


def _say_what_changes(faces: FaceSet, kind: str) -> None:
    gaps = faces.num_classes - len(np.unique(faces.labels))
    if gaps and kind in ("zip", "folder"):
        print(
            f"note: {gaps} identities have no image; a {kind} cannot say so, and numbers the others without gaps"
        )


def convert_pairs(images: str, target: str, pairs: str) -> None:
    """A verification .bin of the listed pairs, encoded images as they are."""
    listed = from_list(pairs, images)
    rows = np.stack([listed.first, listed.second], 1).reshape(-1)
    with bar(len(rows), "reading images") as advance:
        encoded = []
        for row in rows.tolist():
            encoded.append(listed.images.read(row))
            advance(1)
    write_bin(target, encoded, listed.same)
    print(f"wrote {target}: {len(listed.same)} pairs, {int(listed.same.sum())} of one person")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--format", default="auto", help="format of SOURCE where it is ambiguous")
    parser.add_argument("--to", choices=KINDS, help="format of TARGET (default: by its suffix)")
    parser.add_argument(
        "--shard", type=int, default=0, help="zip, tar: images a shard; TARGET is a folder then"
    )
    parser.add_argument(
        "--pairs", help="bin: the list of pairs; SOURCE is the folder or zip of its images"
    )
    options = parser.parse_args(argv)
    kind = options.to or Path(options.target).suffix.lstrip(".") or "folder"
    try:
        if kind not in KINDS:
            raise ValueError(f"{options.target}: unknown suffix; say --to {' | '.join(KINDS)}")
        whole = kind != "folder" and not options.shard
        if whole and os.path.exists(options.target):
            raise FileExistsError(
                f"{options.target}: exists already; remove it or choose another name"
            )
        if kind == "bin":
            if not options.pairs:
                raise ValueError("a .bin needs --pairs LIST")
            convert_pairs(options.source, options.target, options.pairs)
        else:
            convert(
                options.source, options.target, kind=kind, form=options.format, shard=options.shard
            )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
