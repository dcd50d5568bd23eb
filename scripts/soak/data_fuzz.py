"""Opens and reads thousands of face sets whose headers are broken.

    python -m scripts.soak.data_fuzz --count 2000

A small set of synthetic faces is written in every file format, and each copy is broken again and
again: bytes of headers and indices (.idx, record frames and headers with and without an .idx, zip
directories and local headers, tar headers, LMDB pages, page headers and footer of a Parquet file,
the header of an index list) are flipped, set, cut out or doubled, or the file is truncated. The
bytes of images, their labels and row numbers stay as they are, because nothing tells that another
label or number was meant. Each broken set is opened, and every image is read and decoded in a
separate process.

Allowed are a ValueError, an OSError, and images of the set, with one label per identity and one
identity per label. Everything else is a failure: another exception, a wrong image under a label, a
crash, or more than 10 s. Exit code 1: there was a failure.
"""

import hashlib
import logging
import random
import signal
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.decode import decode_any
from data.faces import CHOSEN, open_faces
from data.formats._record_bytes import HEADER
from data.formats.synthetic import SyntheticSet, open_set
from data.options import Count, CountOrZero
from data.writers.records import write_records
from data.writers.shards import write_shards
from scripts._lmdb import write_lmdb
from tools._cli import Failed, command

SOURCE = "synthetic:identities=3,images=3,size=24"
LONGEST = 10  # seconds
# kind -> (file to open, file to break), in a folder with the name of the kind
FILES = {
    "idx": ("a.rec", "a.idx"),
    "rec": ("a.rec", "a.rec"),
    "lost": ("a.rec", "a.rec"),  # without its .idx
    "zip": ("a.zip", "a.zip"),
    "tar": ("a.tar", "a.tar"),
    "lmdb": ("data.mdb", "data.mdb"),
    "parquet": ("a.parquet", "a.parquet"),
    "subset": ("a.rec", "a.npy"),
}
OUTCOMES = ("refused", "partly", "whole")


def make(faces: SyntheticSet, folder: Path) -> None:
    """Write the sets of FILES under `folder`."""
    for kind, (name, _) in FILES.items():
        (folder / kind).mkdir()
        target = folder / kind / name
        if kind == "lmdb":
            write_lmdb(faces, target.parent)
        elif kind == "parquet":
            _write_parquet(faces, target)
        elif kind in ("zip", "tar"):
            write_shards(faces, str(target), kind=kind, shard=0, progress=lambda done: None)
        else:
            write_records(faces, str(target), size=(24, 24), progress=lambda done: None)
    (folder / "lost/a.idx").unlink()
    np.save(folder / "subset/a.npy", np.arange(len(faces)))


def _write_parquet(faces: SyntheticSet, path: Path) -> None:
    images = [faces.read(index) for index in range(len(faces))]
    table = pa.table({"image": pa.array(images, pa.binary()), "label": faces.labels})
    pq.write_table(
        table,
        path,
        row_group_size=4,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )


def path_of(kind: str, folder: Path) -> str:
    """What is opened."""
    path = folder / kind / FILES[kind][0]
    return f"{CHOSEN}{folder / kind / FILES[kind][1]};{path}" if kind == "subset" else str(path)


def headers(data: bytes, kind: str, images: list[bytes]) -> list[int]:
    """Positions that are inside neither an image nor a label."""
    inside = bytearray(len(data))
    label = -HEADER.size + 4 if kind in ("rec", "lost") else 0  # begins behind the flag
    for image in images if kind != "idx" else []:
        at = data.find(image)
        while at >= 0:  # LMDB's page splits leave copies behind
            inside[at : at + len(image)] = b"\1" * len(image)
            if label:
                inside[at + label : at + label + 4] = b"\1" * 4
            at = data.find(image, at + 1)
    outside = [at for at, one in enumerate(inside) if not one]
    if kind == "tar":
        outside = [at for at in outside if not data[at & -512 :][:512].rstrip(b"\0").isdigit()]
    if kind == "lmdb":  # most of a page is empty: spare the zeros behind its header
        outside = [at for at in outside if data[at] or at % 4096 < 160]
    if kind == "parquet":
        metadata = pq.read_metadata(pa.BufferReader(data))
        for group in range(metadata.num_row_groups):
            column = metadata.row_group(group).column(1)
            end = column.data_page_offset + column.total_compressed_size
            outside = [at for at in outside if not column.data_page_offset <= at < end]
    if kind == "subset":
        outside = outside[: len(data) - 8 * len(images)]
    return outside


def broken(data: bytes, places: list[int], rng: random.Random) -> bytes:
    """One to four changes in header bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = min(rng.choice(places), len(out) - 1)
        change = rng.randrange(6)
        if change == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, ord("9")))
        elif change == 2:
            out[at : at + 4] = rng.randbytes(4)
        elif change == 3:
            del out[at : at + rng.randint(1, 8)]
        elif change == 4:
            out[at:at] = out[at : at + rng.randint(1, 8)]
        else:
            del out[rng.choice(places) :]
        if not out:
            out = bytearray(b"\0")
    return bytes(out)


def outcome(path: str, identities: dict[str, int]) -> str:
    """The outcome of opening and reading a set: one of OUTCOMES, or a sentence about the failure.

    identities: hash of an image -> its identity. The process ends after LONGEST seconds.
    """
    signal.alarm(LONGEST)
    try:
        return _outcome(path, identities)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def _outcome(path: str, identities: dict[str, int]) -> str:
    logging.disable()  # each set without an index says so
    try:
        faces = open_faces(path)
    except (ValueError, OSError):
        return "refused"
    errors = 0
    pairs: set[tuple[int, int]] = set()
    for index in range(len(faces)):
        try:
            picture = decode_any(faces.read(index))
        except (ValueError, OSError):
            errors += 1
            continue
        label, identity = int(faces.labels[index]), identities.get(_hash(picture.tobytes()), -1)
        pairs.add((label, identity))
        one_to_one = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        if identity < 0 or not one_to_one:
            return f"wrong: image {index} of identity {identity} under label {label}"
    return "partly" if errors else "whole"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def break_and_read(folder: Path, count: int, seed: int) -> Counter[tuple[str, str]]:
    """How often each (kind, outcome) occurred. It prints the failures."""
    faces = open_set(SOURCE)
    make(faces, folder)
    images = [faces.read(index) for index in range(len(faces))]
    pictures = [_hash(decode_any(data).tobytes()) for data in images]
    identities = dict(zip(pictures, faces.labels.tolist(), strict=True))
    whole = {kind: (folder / kind / file).read_bytes() for kind, (_, file) in FILES.items()}
    places = {kind: headers(data, kind, images) for kind, data in whole.items()}

    counts: Counter[tuple[str, str]] = Counter()
    reader = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    for number in range(count):
        kind = list(FILES)[number % len(FILES)]
        target = folder / kind / FILES[kind][1]
        rng = random.Random(f"{seed}/{number}")
        target.write_bytes(broken(whole[kind], places[kind], rng))
        for stale in target.parent.glob("*.npz"):
            stale.unlink()
        try:
            result = reader.submit(outcome, path_of(kind, folder), identities).result()
        except BrokenProcessPool:
            result = f"crashed, or needed more than {LONGEST} s"
            reader = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        if result not in OUTCOMES:
            print(f"set {number}, {kind}: {result}", flush=True)
        counts[kind, result if result in OUTCOMES else "FAILED"] += 1
        target.write_bytes(whole[kind])
    reader.shutdown()
    return counts


def run(*, count: Count = 2000, seed: CountOrZero = 0) -> dict[str, int]:
    """Break and read sets.

    count: number of broken sets.
    seed: another seed breaks other bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts = break_and_read(Path(folder), count, seed)
    for kind in FILES:
        print(f"{kind:7}", {result: counts[kind, result] for result in (*OUTCOMES, "FAILED")})
    failures = sum(often for (_, result), often in counts.items() if result == "FAILED")
    print(f"{count} broken sets, {failures} failures")
    record = {"cases": count, "failures": failures}
    if failures:
        raise Failed(f"{failures} of {count} broken sets failed", record)
    return record


main = command(run)
