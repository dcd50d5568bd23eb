"""Golden record files, written and read by genuine mxnet 1.9.1.

The requirements are in requirements.txt beside this file; Python 3.11 works.

    python -m venv mx && mx/bin/pip install -r tests/golden/requirements.txt
    mx/bin/python tests/golden/mxnet_records.py write tests/golden
    mx/bin/python tests/golden/mxnet_records.py read FILE.rec

`write` makes the committed files again. `read` prints one JSON line per record, as mxnet reads it.

All images are drawings of data/formats/synthetic.py. Some carry the RecordIO magic after the end of
the image, where decoders ignore it: at a multiple of 4, beside one, and twice in a row. mxnet cuts
those records into segments.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import cv2
import mxnet as mx
import numpy as np

from data.formats.synthetic import draw

MAGIC = struct.pack("<I", 0xCED7230A)


def image(identity: int, number: int, kind: str = ".jpg") -> bytes:
    drawing = draw(seed=0, identity=identity, image=number, size=16)
    return cv2.imencode(kind, drawing[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def with_magic(encoded: bytes, tails: list[bytes]) -> bytes:
    """Append `tails` where the payload is at a multiple of 4.

    A header of 24 bytes comes before the image in the payload.
    """
    return encoded + bytes(-len(encoded) % 4) + b"".join(tails)


def images_of(labels: int) -> list[tuple[int, bytes]]:
    """(label, encoded) in rising order of labels."""
    made = [(label, image(label, number)) for label in range(labels) for number in range(3)]
    made[1] = (0, with_magic(made[1][1], [MAGIC, b"tail"]))
    made[2] = (0, with_magic(made[2][1], [b"x", MAGIC, b"abc"]))
    made[4] = (1, with_magic(made[4][1], [MAGIC, MAGIC, b"between", b"\0", MAGIC]))
    made[5] = (1, image(1, 2, ".png"))
    return made


def write(folder: Path) -> None:
    made = images_of(3)
    for name, insightface in (("insightface", True), ("im2rec", False)):
        record = mx.recordio.MXIndexedRecordIO(
            str(folder / f"{name}.idx"), str(folder / f"{name}.rec"), "w"
        )
        first = int(insightface)
        if insightface:
            labels = [1 + len(made), 1 + len(made) + 3]
            record.write_idx(0, mx.recordio.pack(mx.recordio.IRHeader(0, labels, 0, 0), b""))
        for key, (label, encoded) in enumerate(made, first):
            # one in three with a label vector, as MS1MV2 has; one with the magic as its id, inside
            # the header
            value = [float(label), 7.5] if key % 3 == 0 else float(label)
            ident = 0xCED7230A if key == 7 else key
            record.write_idx(
                key, mx.recordio.pack(mx.recordio.IRHeader(0, value, ident, 0), encoded)
            )
        if insightface:
            for label in range(3):
                mine = [key for key, (other, _) in enumerate(made, first) if other == label]
                key = 1 + len(made) + label
                header = mx.recordio.IRHeader(0, [mine[0], mine[-1] + 1], key, 0)
                record.write_idx(key, mx.recordio.pack(header, b""))
        record.close()
        (folder / f"{name}.json").write_text("".join(lines(folder / f"{name}.rec")))


def lines(rec: Path) -> list[str]:
    record = mx.recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    out = []
    for key in record.keys:
        header, encoded = mx.recordio.unpack(record.read_idx(key))
        labels = np.atleast_1d(np.asarray(header.label, np.float32)).tolist()
        entry = {"key": key, "labels": labels, "id": header.id, "bytes": len(encoded)}
        out.append(json.dumps({**entry, "sha256": hashlib.sha256(encoded).hexdigest()}) + "\n")
    return out


if __name__ == "__main__":
    command, path = sys.argv[1:]
    if command == "write":
        write(Path(path))
    else:
        sys.stdout.writelines(lines(Path(path)))
