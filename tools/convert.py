"""Converts a face set to another format without loss: encoded images are copied byte by byte.

    python -m tools.convert SOURCE TARGET.rec                insightface record file with its .idx
    python -m tools.convert SOURCE TARGET.zip                one file; TARGET.tar likewise
    python -m tools.convert SOURCE TARGET --to zip --shard N a folder of files of N images each
    python -m tools.convert SOURCE TARGET                    a folder with one folder per identity
    python -m tools.convert IMAGES TARGET.bin --pairs LIST   verification .bin of listed pairs
    python -m tools.convert FACES.rec FACES.idx              the index of a record file, made again

A file appears under its name only when it is complete. An image that cannot be read does not end
the conversion: all of them are named at the end, with exit code 1. --skip-bad leaves them out.
Either way a second call goes on where the first stopped; only one file of zip or tar begins again
if the call was killed.
"""

import hashlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from data.decode import decode_any
from data.faces import open_faces
from data.files import PreadFile
from data.formats.recordio import RecordSet, rec_file
from data.landmarks import landmarks_file, landmarks_of, write_landmarks
from data.options import CountOrZero
from data.pairs.lists import from_list
from data.types import FaceSet
from data.writers._bad import BadImages
from data.writers.folder import write_folder
from data.writers.index import write_index
from data.writers.records import write_records
from data.writers.shards import write_shards
from tools._cli import Failed, command
from tools._progress import progress_bar
from tools.make_pairs import write_pairs

Kind = Literal["rec", "zip", "tar", "bin", "folder", "idx"]


def convert(
    faces: FaceSet, target: str, *, kind: str, shard: int, skip_bad: bool = False
) -> dict[str, int]:
    """Write `faces` as `target`. shard: images per file of a zip or tar set, 0 for one file.

    Images that cannot be read are printed. Raises Failed if there are some and not `skip_bad`.
    """
    bad = BadImages(faces, skip=skip_bad, unlabeled=_unlabeled(faces))
    gaps = faces.num_classes - len(np.unique(faces.labels))
    if gaps and kind in ("zip", "folder"):
        print(f"note: {gaps} identities have no image; a {kind} numbers the others without gaps")
    with progress_bar(len(faces), f"writing {kind}") as advance:
        if kind == "rec":
            write_records(faces, target, size=_first_size(faces), progress=advance, bad=bad)
        elif kind == "folder":
            write_folder(faces, target, progress=advance, bad=bad)
        else:
            write_shards(faces, target, kind=kind, shard=shard, progress=advance, bad=bad)
    record = {"images": len(faces) - len(bad.found), "identities": faces.num_classes}
    told = [*bad.unlabeled, *(bad.found[index] for index in sorted(bad.found))]
    for line in told:
        print(f"{'left out' if skip_bad else 'bad'}: {line}")
    if told:
        record |= {"bad": len(told)}
    if told and not skip_bad:
        raise Failed(
            f"{target}: not finished, because {len(told)} images cannot be read: mend them, or "
            "leave them out with --skip-bad; the next call goes on from here",
            record,
        )
    carry_landmarks(faces, target)
    return record


def carry_landmarks(faces: FaceSet, target: str) -> None:
    """Write the landmarks of `faces` beside the set that was made of it, if it has some.

    Writers may change the order and leave images out, so the bytes of the images are compared.
    """
    known = landmarks_of(faces)
    if known is None:
        return
    row_of = {_digest(faces, row): row for row in range(len(faces))}
    written = open_faces(target, check=False)
    file = landmarks_file(written)
    assert file is not None
    rows = [row_of[_digest(written, row)] for row in range(len(written))]
    write_landmarks(file, written, known[rows])


def _digest(faces: FaceSet, row: int) -> bytes:
    """What tells an image from others; nothing for one that cannot be read."""
    try:
        return hashlib.blake2b(faces.read(row), digest_size=16).digest()
    except (ValueError, OSError):
        return b""


def _first_size(faces: FaceSet) -> tuple[int, int]:
    """Height and width of the first image that can be decoded."""
    for index in range(len(faces)):
        try:
            height, width = decode_any(faces.read(index)).shape[:2]
        except (ValueError, OSError):
            continue
        return height, width
    raise ValueError("no image of the set can be decoded; see tools.verify")


def _unlabeled(faces: FaceSet) -> list[str]:
    """What is said of records without a label, which a set leaves out."""
    if not isinstance(faces, RecordSet):
        return []
    keys = faces.broken.tolist()
    return [f"{faces.file.path} key {key}: no whole record with a label" for key in keys]


def run(
    source: str,
    target: Path,
    *,
    to: Kind | None = None,
    shard: CountOrZero = 0,
    pairs: str | None = None,
    skip_bad: bool = False,
    format: str = "auto",
) -> dict[str, int]:
    """Convert one face set.

    source: any face set; with --pairs, the folder or zip of the listed images.
    target: file or folder to write.
    to: format of TARGET (default: by its suffix).
    shard: for zip and tar: images per file, so that TARGET becomes a folder of files; 0: one file.
    pairs: for bin: the pair list.
    skip_bad: leave out images that cannot be read, and list them.
    format: format of SOURCE, needed only if SOURCE could be read in several formats.
    """
    kind = to or target.suffix.lstrip(".") or "folder"
    if kind not in get_args(Kind):
        raise ValueError(f"{target}: unknown suffix; give --to {' | '.join(get_args(Kind))}")
    if kind != "folder" and not shard and target.exists():
        raise FileExistsError(f"{target}: exists already; remove it or choose another name")
    if kind == "idx":
        record = _index(source, target)
    elif kind != "bin":
        faces = open_faces(source, format)
        record = convert(faces, str(target), kind=kind, shard=shard, skip_bad=skip_bad)
    elif pairs:
        listed = from_list(pairs, source)
        write_pairs(target, listed)
        record = {"pairs": len(listed.same), "genuine": int(listed.same.sum())}
    else:
        raise ValueError(f"{target}: a .bin is written from a pair list; give --pairs LIST")
    print(f"wrote {target}: " + ", ".join(f"{count} {name}" for name, count in record.items()))
    return record


def _index(source: str, target: Path) -> dict[str, int]:
    file = PreadFile(str(rec_file(source)))
    with progress_bar(file.size, "reading records") as advance:
        return {"records": write_index(file, target, progress=advance)}


main = command(run)
