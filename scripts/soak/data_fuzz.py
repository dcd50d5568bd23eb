"""Broken headers by the thousand: python -m scripts.soak.data_fuzz [--count 2000] [--seed 0]
[--json]

Makes a small set of synthetic faces in every file format, then breaks it `count` times: bytes of
headers and indices (.idx, record frames and headers, zip directories and local headers, tar
headers, LMDB pages) are flipped, set, cut out, doubled, or the file is truncated; image bytes are
spared. Each broken set is opened and every image read and decoded. Allowed: a ValueError or
OSError, or pictures of the set, one label an identity and one identity a label. Anything else
(another exception, a wrong picture under a label, more than 10 s) is a failure, and so is a crash:
a process of its own does the reading. Exit code 1 on a failure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from data.decode import decode_any
from data.faces import open_faces
from data.formats.synthetic import SyntheticSet, open_set
from data.writers.records import write_records
from data.writers.shards import write_shards

SOURCE = "synthetic:identities=3,images=3,size=24"
LONGEST = 10.0
KINDS = ("idx", "rec", "zip", "tar", "lmdb")


def make(folder: Path) -> dict[str, tuple[str, str]]:
    """kind -> (path to open, file to break), under `folder`."""
    faces = open_set(SOURCE)
    for name in ("idx", "rec", "zip", "tar", "lmdb"):
        (folder / name).mkdir()
    for name in ("idx", "rec"):
        write_records(faces, str(folder / name / "a.rec"), size=(24, 24), progress=_quiet)
    for name in ("zip", "tar"):
        write_shards(faces, str(folder / name / f"a.{name}"), kind=name, shard=0, progress=_quiet)
    _make_lmdb(faces, folder / "lmdb")
    paths = {name: (f"{name}/a.{name}", f"{name}/a.{name}") for name in ("rec", "zip", "tar")}
    return {**paths, "idx": ("idx/a.rec", "idx/a.idx"), "lmdb": ("lmdb/data.mdb", "lmdb/data.mdb")}


def _quiet(_: int) -> None:
    pass


def _make_lmdb(faces: SyntheticSet, folder: Path) -> None:
    import lmdb

    environment = lmdb.open(str(folder), map_size=1 << 22)
    with environment.begin(write=True) as transaction, open(folder / "a_kv.txt", "w") as keys:
        for index in range(len(faces)):
            transaction.put(b"a_%d" % index, faces.read(index))
            keys.write(f"a_{index} {faces.labels[index]}\n")
    environment.close()
    (folder / "lock.mdb").unlink()


def headers(data: bytes, kind: str, images: list[bytes]) -> list[int]:
    """Positions that are not inside an image's bytes."""
    inside = bytearray(len(data))
    for image in images if kind != "idx" else []:
        at = data.find(image)
        while at >= 0:  # LMDB's page splits leave copies behind
            inside[at : at + len(image)] = b"\1" * len(image)
            at = data.find(image, at + 1)
    return [at for at, one in enumerate(inside) if not one]


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
    """What opening and reading a set came to: refused, partly, whole; or what is wrong, in
    words."""
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
        identity = identities.get(hashlib.sha256(picture.tobytes()).hexdigest(), -1)
        pairs.add((int(faces.labels[index]), identity))
        if identity < 0 or len(pairs) > min(
            len({label for label, _ in pairs}), len({person for _, person in pairs})
        ):
            return (
                f"WRONG image {index} of identity {identity} under label {int(faces.labels[index])}"
            )
    return "partly" if errors else "whole"


def work(folder: Path, count: int, seed: int) -> int:
    """Breaks and reads; one line a case on stdout. Run in a process of its own."""
    faces = open_set(SOURCE)
    images = [faces.read(index) for index in range(len(faces))]
    pictures = [hashlib.sha256(decode_any(data).tobytes()).hexdigest() for data in images]
    identities = dict(zip(pictures, faces.labels.tolist(), strict=True))
    paths = make(folder)
    whole = {kind: (folder / file).read_bytes() for kind, (_, file) in paths.items()}
    places = {kind: headers(data, kind, images) for kind, data in whole.items()}
    places["lmdb"] = [at for at in places["lmdb"] if whole["lmdb"][at] or at % 4096 < 160]
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kind = KINDS[number % len(KINDS)]
        path, file = paths[kind]
        target = folder / file
        target.write_bytes(broken(whole[kind], places[kind], rng))
        for stale in target.parent.glob("*.npz"):
            stale.unlink()
        print(f"start {number} {kind}", flush=True)
        began = time.perf_counter()
        try:
            result = outcome(str(folder / path), identities)
        except Exception as error:
            result = f"RAISED {type(error).__name__}: {error}"
        if time.perf_counter() - began > LONGEST:
            result = "SLOW"
        print(f"done {number} {kind} {result}", flush=True)
        target.write_bytes(whole[kind])
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        return work(Path(options.folder), options.count, options.seed)
    folder = Path(tempfile.mkdtemp())
    try:
        command = [sys.executable, __file__, "--folder", str(folder), "--count", str(options.count)]
        command += ["--seed", str(options.seed)]
        child = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=60 + options.count
        )
    finally:
        shutil.rmtree(folder)
    done = [line.split(" ", 3) for line in child.stdout.splitlines() if line.startswith("done")]
    counts = Counter(
        (kind, result if result.islower() else "FAILED") for _, _, kind, result in done
    )
    failures = [line for line in done if not line[3].islower()]
    for line in failures:
        print(*line[1:])
    if child.returncode or len(done) != options.count:
        failures.append(["crash"])
        print(
            f"the reading process ended with {child.returncode}; its last words: {child.stdout.splitlines()[-1:]}"
        )
    for kind in KINDS:
        print(
            f"{kind:6}",
            {result: counts[kind, result] for result in ("refused", "partly", "whole", "FAILED")},
        )
    print(f"{len(done)} broken sets, {len(failures)} failures")
    if options.json:
        print(json.dumps({"cases": len(done), "failures": len(failures)}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
