"""Measures the time and memory of opening a large face set, which is generated for that.

    python -m scripts.bench.open --format recordio --images 5179510 --identities 93431
    python -m scripts.bench.open --format zip --images 4247456 --identities 205991 --shards 10

The first command has the size of MS1MV3. 42474557 images of 2059906 identities are the size of
WebFace42M, whose keys are too large for float32, so that all headers are read. Each opening is a
separate process. The first one scans the set if the format needs it. The second one finds the
result of that scan beside the files. Memory is the peak above what the process held before. Images
are a few bytes long. Files go into a temporary folder, which TMPDIR chooses.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.faces import open_faces
from data.formats._record_bytes import FRAME, MAGIC
from data.options import Count
from data.writers.shards import write_shards
from recognition.memory import peak_bytes, resident_bytes
from scripts._lmdb import write_lmdb
from scripts._tables import show_table
from scripts.bench._measure import in_own_process
from tools._cli import command

CHUNK = 1 << 20
RECORD = np.dtype(
    [("frame", "<u4", 2), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("body", "<f4", 2)]
)


class Tiny:
    """A FaceSet of images of four bytes, with the same number for each identity."""

    def __init__(self, images: int, identities: int) -> None:
        self.labels = np.arange(images, dtype=np.int64) * identities // images
        self.num_classes = identities

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return b"\xff\xd8\xff\xd9"

    def describe(self, index: int) -> str:
        return f"image {index}"


def write_records(faces: Tiny, folder: Path) -> None:
    """Write insightface's layout with records of 40 bytes, in chunks.

    data/writers/records.py writes image by image, which would take minutes.
    """
    images, last = len(faces), 1 + len(faces) + faces.num_classes
    bounds = 1 + np.searchsorted(faces.labels, np.arange(faces.num_classes + 1))
    with open(folder / "train.rec", "wb") as records, open(folder / "train.idx", "wb") as index:
        for start in range(0, last, CHUNK):
            keys = np.arange(start, min(start + CHUNK, last))
            rows = np.zeros(len(keys), RECORD)
            rows["frame"] = MAGIC, RECORD.itemsize - FRAME.size
            rows["ids"][:, 0] = keys

            # Keys 1…N are images. Those behind them are identities, with the range of their images.
            image = (keys > 0) & (keys <= images)
            rows["label"][image] = faces.labels[keys[image] - 1]
            rows["flag"][~image] = 2
            owner = keys[keys > images] - images - 1
            rows["body"][keys > images] = np.stack([bounds[owner], bounds[owner + 1]], 1)
            rows["body"][keys == 0] = images + 1, last
            records.write(rows.tobytes())
            lines = (f"{key}\t{key * RECORD.itemsize}\n" for key in keys.tolist())
            index.write("".join(lines).encode())
    (folder / "property").write_text(f"{faces.num_classes},112,112\n")


def write(form: str, faces: Tiny, shards: int, folder: Path) -> None:
    if form == "recordio":
        write_records(faces, folder)
    elif form == "lmdb":
        write_lmdb(faces, folder)
    else:
        shard = -(-len(faces) // shards)
        write_shards(faces, str(folder), kind=form, shard=shard, progress=lambda done: None)


def measure(path: str) -> dict[str, float]:
    """Open the set in this process: wall-clock seconds, and the rise of the peak memory."""
    before = resident_bytes()
    start = time.perf_counter()
    faces = open_faces(path)
    spent = time.perf_counter() - start
    return {"images": len(faces), "seconds": spent, "peak MB": (peak_bytes() - before) / 1e6}


def run(
    *,
    format: Literal["recordio", "zip", "tar", "lmdb"] = "recordio",
    images: Count = 5_179_510,
    identities: Count = 93_431,
    shards: Count = 10,
) -> dict[str, Any]:
    """Make a set, and open it twice.

    format: format of the set.
    images: images in the set.
    identities: identities in the set.
    shards: files of a zip or tar set.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(format, Tiny(images, identities), shards, Path(folder))
        openings = ("first", "second")
        rows = ({"opening": name, **in_own_process(measure, folder)} for name in openings)
        return {"rows": show_table(rows)}


main = command(run)
