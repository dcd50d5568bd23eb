"""Converts a face set to another format without loss: encoded images are copied byte by byte.

    python -m tools.convert SOURCE TARGET.rec                insightface record file with its .idx
    python -m tools.convert SOURCE TARGET.zip                one file; TARGET.tar likewise
    python -m tools.convert SOURCE TARGET --to zip --shard N a folder of files of N images each
    python -m tools.convert SOURCE TARGET                    a folder with one folder per identity
    python -m tools.convert IMAGES TARGET.bin --pairs LIST   verification .bin of listed pairs

A call continues where a killed one stopped. A file appears under its name only when it is complete.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from data.decode import decode_any
from data.faces import open_faces
from data.options import CountOrZero
from data.pairs.lists import from_list
from data.types import FaceSet
from data.writers.folder import write_folder
from data.writers.records import write_records
from data.writers.shards import write_shards
from tools._cli import command
from tools._progress import progress_bar
from tools.make_pairs import write_pairs

Kind = Literal["rec", "zip", "tar", "bin", "folder"]


def convert(faces: FaceSet, target: str, *, kind: str, shard: int) -> dict[str, int]:
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
    return {"images": len(faces), "identities": faces.num_classes}


def run(
    source: str,
    target: Path,
    *,
    to: Kind | None = None,
    shard: CountOrZero = 0,
    pairs: str | None = None,
    format: str = "auto",
) -> dict[str, int]:
    """Convert one face set.

    source: any face set; with --pairs, the folder or zip of the listed images.
    target: file or folder to write.
    to: format of TARGET (default: by its suffix).
    shard: for zip and tar: images per file, so that TARGET becomes a folder of files; 0: one file.
    pairs: for bin: the pair list.
    format: format of SOURCE, needed only if SOURCE could be read in several formats.
    """
    kind = to or target.suffix.lstrip(".") or "folder"
    if kind not in get_args(Kind):
        raise ValueError(f"{target}: unknown suffix; give --to {' | '.join(get_args(Kind))}")
    if kind != "folder" and not shard and target.exists():
        raise FileExistsError(f"{target}: exists already; remove it or choose another name")
    if kind != "bin":
        record = convert(open_faces(source, format), str(target), kind=kind, shard=shard)
    elif pairs:
        listed = from_list(pairs, source)
        write_pairs(target, listed)
        record = {"pairs": len(listed.same), "genuine": int(listed.same.sum())}
    else:
        raise ValueError(f"{target}: a .bin is written from a pair list; give --pairs LIST")
    print(f"wrote {target}: " + ", ".join(f"{count} {name}" for name, count in record.items()))
    return record


main = command(run)
