"""What opening a large face set costs, on a generated one: python -m scripts.bench.open [--json]

    --format recordio --images 5179510 --identities 93431       MS1MV3's size
    --format recordio --images 42474557 --identities 2059906    WebFace42M's: keys outgrow float32,
    headers are read
    --format zip --images 4247456 --identities 205991 --shards 10

Each opening is a process of its own. Seconds by the clock and the peak of its resident memory, in
MB above what it held before (Linux only): of the first opening, which scans where the format needs
it, and of the second, which finds the scan's result beside the files. Images are a few bytes; files
go into a temporary folder (TMPDIR chooses where).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from data.formats._record_bytes import FRAME, MAGIC
from data.writers.shards import write_shards

FORMATS = ("recordio", "zip", "tar", "lmdb")
CHUNK = 1 << 20
RECORD = np.dtype(
    [("frame", "<u4", 2), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("body", "<f4", 2)]
)
OPEN = """
import json, sys, time
from data.faces import open_faces
def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
before = kilobytes("VmRSS")
began = time.perf_counter()
faces = open_faces(sys.argv[1])
seconds = time.perf_counter() - began
mb = (kilobytes("VmHWM") - before) * 1024 / 1e6
print(json.dumps({"images": len(faces), "seconds": round(seconds, 2), "mb": round(mb)}))
"""  # not ru_maxrss: it starts at what the parent had


class Tiny:
    """A FaceSet of images of four bytes, as many of each identity as any other."""

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
    """insightface's layout with records of 40 bytes; data/writers/records.py, image by image, would
    take minutes."""
    images, last = len(faces), 1 + len(faces) + faces.num_classes
    bounds = 1 + np.searchsorted(faces.labels, np.arange(faces.num_classes + 1))
    with open(folder / "train.rec", "wb") as records, open(folder / "train.idx", "wb") as index:
        for start in range(0, last, CHUNK):
            keys = np.arange(start, min(start + CHUNK, last))
            rows = np.zeros(len(keys), RECORD)
            rows["frame"] = MAGIC, RECORD.itemsize - FRAME.size
            rows["ids"][:, 0] = keys
            image = (keys > 0) & (keys <= images)
            rows["label"][image] = faces.labels[keys[image] - 1]
            rows["flag"][~image] = 2
            owner = keys[keys > images] - images - 1
            rows["body"][keys > images] = np.stack([bounds[owner], bounds[owner + 1]], 1)
            rows["body"][keys == 0] = images + 1, last
            records.write(rows.tobytes())
            index.write(
                "".join(f"{key}\t{key * RECORD.itemsize}\n" for key in keys.tolist()).encode()
            )
    (folder / "property").write_text(f"{faces.num_classes},112,112\n")


def write_lmdb(faces: Tiny, folder: Path) -> None:
    import lmdb

    with (
        lmdb.open(str(folder), map_size=1 << 40, sync=False) as store,
        store.begin(write=True) as transaction,
    ):
        items = ((f"{index:09d}".encode(), faces.read(index)) for index in range(len(faces)))
        transaction.cursor().putmulti(items, append=True)
    with open(folder / "train_kv.txt", "w") as file:
        file.writelines(
            f"{index:09d} {label}\n" for index, label in enumerate(faces.labels.tolist())
        )


def write(form: str, images: int, identities: int, shards: int, folder: Path) -> None:
    faces = Tiny(images, identities)
    if form == "recordio":
        write_records(faces, folder)
    elif form == "lmdb":
        write_lmdb(faces, folder)
    else:
        write_shards(
            faces, str(folder), kind=form, shard=-(-images // shards), progress=lambda done: None
        )


def opened(path: str) -> dict[str, float]:
    """The figures that OPEN prints, of a fresh process."""
    command = [sys.executable, "-c", OPEN, path]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=FORMATS, default="recordio")
    parser.add_argument("--images", type=int, default=5_179_510)
    parser.add_argument("--identities", type=int, default=93_431)
    parser.add_argument("--shards", type=int, default=10, help="files of a zip or tar set")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write(options.format, options.images, options.identities, options.shards, Path(name))
        first, second = opened(name), opened(name)
    result = {"format": options.format, "identities": options.identities, "images": first["images"]}
    for which, figures in (("first", first), ("second", second)):
        result |= {f"{which}_seconds": figures["seconds"], f"{which}_mb": figures["mb"]}
    for key, value in result.items():
        print(f"{key:16}{value}")
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
