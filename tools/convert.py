"""Converts a face set to another format without loss: encoded images are copied byte by byte.

    python -m tools.convert SOURCE TARGET.rec                insightface record file with its .idx
    python -m tools.convert SOURCE TARGET.zip                one file; TARGET.tar likewise
    python -m tools.convert SOURCE TARGET --to zip --shard N a folder of files of N images each
    python -m tools.convert SOURCE TARGET                    a folder with one folder per identity
    python -m tools.convert IMAGES TARGET.bin --pairs LIST   verification .bin of listed pairs

A call that was killed is continued by the next one. A file appears under its name only when it is
whole.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from data.decode import decode_any
from data.faces import open_faces
from data.pairs.lists import from_list
from data.pairs.verification_bin import write_bin
from data.types import FaceSet
from data.writers.folder import write_folder
from data.writers.records import write_records
from data.writers.shards import write_shards
from tools._cli import command_parser, run_command
from tools._faces import add_faces
from tools._progress import progress_bar

KINDS = ("rec", "zip", "tar", "bin", "folder")


def convert(faces: FaceSet, target: str, *, kind: str, shard: int) -> None:
    """Write `faces` as `target`. shard: images per file of a zip or tar set, 0 for one file."""
    gaps = faces.num_classes - len(np.unique(faces.labels))
    if gaps and kind in ("zip", "folder"):
        print(f"note: {gaps} identities have no image; a {kind} numbers the others without gaps")
    with progress_bar(len(faces), f"writing {kind}") as advance:
        if kind == "rec":
            height, width = decode_any(faces.read(0)).shape[:2]
            write_records(faces, target, size=(height, width), progress=advance)
        elif kind == "folder":
            write_folder(faces, target, progress=advance)
        else:
            write_shards(faces, target, kind=kind, shard=shard, progress=advance)


def convert_pairs(images: str, target: str, pairs: str) -> dict[str, int]:
    """Write a verification .bin of the listed pairs, with the encoded images as they are."""
    listed = from_list(pairs, images)
    rows = np.stack([listed.first, listed.second], 1).reshape(-1)
    encoded = []
    with progress_bar(len(rows), "reading images") as advance:
        for row in rows.tolist():
            encoded.append(listed.images.read(row))
            advance(1)
    write_bin(target, encoded, listed.same)
    return {"pairs": len(listed.same), "genuine": int(listed.same.sum())}


def run(options: argparse.Namespace) -> dict[str, int]:
    target = Path(options.target)
    kind = options.to or target.suffix.lstrip(".") or "folder"
    if kind not in KINDS:
        raise ValueError(f"{target}: unknown suffix; give --to {' | '.join(KINDS)}")
    if kind != "folder" and not options.shard and target.exists():
        raise FileExistsError(f"{target}: exists already; remove it or choose another name")
    if kind == "bin" and not options.pairs:
        raise ValueError(f"{target}: a .bin needs --pairs LIST")
    if kind == "bin":
        record = convert_pairs(options.source, options.target, options.pairs)
    else:
        faces = open_faces(options.source, options.format)
        convert(faces, options.target, kind=kind, shard=options.shard)
        record = {"images": len(faces), "identities": faces.num_classes}
    print(f"wrote {target}: " + ", ".join(f"{count} {name}" for name, count in record.items()))
    return record


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("tools.convert", __doc__)
    add_faces(parser, "source")
    parser.add_argument("target", metavar="TARGET", help="file or folder to write")
    parser.add_argument("--to", choices=KINDS, help="format of TARGET (default: by its suffix)")
    parser.add_argument(
        "--shard",
        type=int,
        default=0,
        metavar="N",
        help="zip and tar: images per file; TARGET becomes a folder of files",
    )
    parser.add_argument(
        "--pairs", metavar="LIST", help="bin: the pair list; SOURCE is the folder or zip of images"
    )
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
