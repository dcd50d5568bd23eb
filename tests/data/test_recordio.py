"""Record files equal those of genuine mxnet and of a literal reader, and broken ones are errors."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import struct
import subprocess
from multiprocessing import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.faces import check_labels, open_faces
from data.files import PreadFile
from data.formats._record_bytes import (
    CutOff,
    pack_image,
    pack_record,
    read_index,
    unpack_image,
    unpack_record,
)
from data.formats.recordio import open_set
from data.types import FaceSet
from data.writers.records import write_records

GOLDEN = Path(__file__).parents[1] / "golden"
REAL = Path(__file__).parents[2] / "../shared/data/faces/train.rec"
MAGIC = struct.pack("<I", 0xCED7230A)


def quiet(_: int) -> None:
    pass


def golden(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / f"{name}.json").read_text().splitlines()]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the golden insightface file, which a test may break."""
    for kind in ("rec", "idx"):
        shutil.copy(GOLDEN / f"insightface.{kind}", tmp_path / f"train.{kind}")
    return tmp_path / "train.rec"


@pytest.mark.parametrize("name", ["insightface", "im2rec"])
def test_every_golden_record_reads_as_mxnet_reads_it(name: str) -> None:
    file = PreadFile(str(GOLDEN / f"{name}.rec"))
    keys, offsets = read_index(str(GOLDEN / f"{name}.idx"))
    expected = golden(name)
    assert keys.tolist() == [entry["key"] for entry in expected]
    for offset, entry in zip(offsets.tolist(), expected, strict=True):
        payload, _ = unpack_record(file.read(offset, file.size - offset), "golden")
        labels, ident, encoded = unpack_image(payload, "golden")
        assert (labels.tolist(), ident, len(encoded)) == (
            entry["labels"],
            entry["id"],
            entry["bytes"],
        )
        assert hashlib.sha256(encoded).hexdigest() == entry["sha256"]


def test_golden_files_have_records_in_segments() -> None:
    words = np.fromfile(GOLDEN / "insightface.rec", "<u4")
    begins = np.flatnonzero(words[:-1] == 0xCED7230A)
    assert set((words[begins + 1] >> 29).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["insightface", "im2rec"])
def test_golden_set(name: str, tmp_path: Path) -> None:
    for kind in ("rec", "idx"):
        shutil.copy(GOLDEN / f"{name}.{kind}", tmp_path / f"train.{kind}")
    images = [entry for entry in golden(name) if entry["bytes"]]
    for _ in range(2):  # The second opening uses the cache if the labels were scanned.
        faces = open_faces(tmp_path)
        assert faces.labels.tolist() == [int(entry["labels"][0]) for entry in images]
        assert faces.labels.dtype == np.int64
        assert faces.num_classes == 3
        got = [hashlib.sha256(faces.read(i)).hexdigest() for i in range(len(faces))]
        assert got == [entry["sha256"] for entry in images]
        assert faces.describe(2).endswith(f"train.rec key {images[2]['key']}")


@given(
    st.lists(st.sampled_from([MAGIC, b"a", b"bc", b"\0\0\0\0", MAGIC[:2]]), max_size=12).map(
        b"".join
    )
)
def test_packing_follows_the_format_exactly(payload: bytes) -> None:
    """The payload is cut at 4-byte words that equal the magic."""
    segments, current = [], b""
    for at in range(0, len(payload), 4):
        if payload[at : at + 4] == MAGIC:
            segments.append(current)
            current = b""
        else:
            current += payload[at : at + 4]
    segments.append(current)
    flags = [0] if len(segments) == 1 else [1, *[2] * (len(segments) - 2), 3]
    expected = b"".join(
        MAGIC + struct.pack("<I", flag << 29 | len(segment)) + segment + bytes(-len(segment) % 4)
        for flag, segment in zip(flags, segments, strict=True)
    )
    assert pack_record(payload) == expected
    assert unpack_record(expected + b"next", "here") == (payload, len(expected))
    with pytest.raises(CutOff):
        unpack_record(expected[: len(expected) - 1 - (-len(segments[-1]) % 4)], "here")


def test_index_lines_in_any_order_and_line_ending(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(b"2\t80\r\n0\t0\r\n10\t12345678901\r\n")
    keys, offsets = read_index(str(tmp_path / "a.idx"))
    assert keys.tolist() == [2, 0, 10]
    assert offsets.tolist() == [80, 0, 12345678901]


@pytest.mark.parametrize(
    "text", [b"", b"1 2 3\n", b"a\t2\n", b"1\t2\n3\n", b"1\t-2\n", b"1\t2\t3\n", b"\t\n"]
)
def test_broken_index_is_an_error(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.idx").write_bytes(text)
    with pytest.raises(ValueError, match="a.idx"):
        read_index(str(tmp_path / "a.idx"))


def test_truncated_record_file(copied: Path) -> None:
    whole = copied.read_bytes()
    copied.write_bytes(whole[:3000])
    with pytest.raises(
        ValueError, match=r"train.idx: key \d+ points to byte .*train.rec has 3000 bytes"
    ):
        open_faces(copied)
    copied.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cut off|truncated|no whole record"):
        [faces.read(i) for faces in [open_faces(copied)] for i in range(len(faces))]


def test_file_that_shrinks_while_open(copied: Path) -> None:
    faces = open_faces(copied)
    os.truncate(copied, 4000)
    with pytest.raises(ValueError, match="shorter"):
        faces.read(8)


def test_index_of_another_file(copied: Path) -> None:
    index = copied.with_suffix(".idx")
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:5]) + "\n")
    with pytest.raises(ValueError, match="the .idx is not of this file or is cut off"):
        open_faces(copied)


def test_wrong_image_never_comes_under_a_right_label(copied: Path) -> None:
    """The offsets of two keys are exchanged, and the label in the image's header shows it."""
    index = copied.with_suffix(".idx")
    rows = [line.split("\t") for line in index.read_text().splitlines()]
    rows[2][1], rows[8][1] = rows[8][1], rows[2][1]
    index.write_text("".join(f"{key}\t{offset}\n" for key, offset in rows))
    faces = open_faces(copied)
    with pytest.raises(ValueError, match=r"key 2: carries label 2, the set has 0"):
        faces.read(1)


@pytest.mark.parametrize(("number", "message"), [(2, "label 2, but the set declares 2"), (3, None)])
def test_property_limits_labels(copied: Path, number: int, message: str | None) -> None:
    copied.with_name("property").write_text(f"{number},112,112\n")
    if message is None:
        assert open_faces(copied).num_classes == number
    else:
        with pytest.raises(ValueError, match=message):
            open_faces(copied)


def write_plain(path: Path, records: list[bytes]) -> None:
    """Writes im2rec's layout, in which every record is an image."""
    at = 0
    with open(path, "wb") as rec, open(path.with_suffix(".idx"), "w") as idx:
        for key, payload in enumerate(records):
            idx.write(f"{key}\t{at}\n")
            at += rec.write(pack_record(payload))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1.0, "negative label -1"),
        (0.5, "label 0.5, expected a whole"),
        (float("nan"), "label nan"),
    ],
)
def test_impossible_labels_are_named(tmp_path: Path, label: float, message: str) -> None:
    write_plain(tmp_path / "a.rec", [pack_image(b"x", 0.0, 0), pack_image(b"y", label, 1)])
    with pytest.raises(ValueError, match=message):
        open_faces(tmp_path / "a.rec")


def test_one_identity_is_refused_for_training_but_opens_for_the_tools(tmp_path: Path) -> None:
    write_plain(tmp_path / "a.rec", [pack_image(b"x", 0.0, 0), pack_image(b"y", 0.0, 1)])
    with pytest.raises(ValueError, match="all 2 images have label 0"):
        open_faces(tmp_path / "a.rec")
    assert len(open_faces(tmp_path / "a.rec", check=False)) == 2


def test_labels_must_be_integers() -> None:
    with pytest.raises(ValueError, match="labels are float64"):
        check_labels(np.array([0.0, 1.0]), 2, "here")


def test_label_cache_follows_the_file_and_needs_no_writable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rec = folder / "a.rec"
    write_plain(rec, [pack_image(b"x", float(label), 0) for label in (0, 1, 2)])
    assert open_faces(rec).labels.tolist() == [0, 1, 2]
    assert (folder / "a.rec.labels.npz").exists()
    write_plain(rec, [pack_image(b"xyz", float(label), 0) for label in (2, 1, 0)])
    assert open_faces(rec).labels.tolist() == [2, 1, 0]
    (folder / "a.rec.labels.npz").write_bytes(b"PK broken")
    assert open_faces(rec).labels.tolist() == [2, 1, 0]
    (folder / "a.rec.labels.npz").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("data.formats._index_cache.atomic_write", refuse)
    assert open_faces(rec).labels.tolist() == [2, 1, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["a.idx", "a.rec"]


class Given:
    """A FaceSet of given bytes."""

    def __init__(self, images: list[bytes], labels: list[int], classes: int) -> None:
        self.images, self.labels, self.num_classes = images, np.array(labels), classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self.images[index]

    def describe(self, index: int) -> str:
        return f"given {index}"


def written(path: Path) -> Given:
    images = [b"first", MAGIC * 3, b"12" + MAGIC + b"x", b"\0" * 7, MAGIC + b"end"]
    source = Given(images, [2, 0, 2, 0, 3], 4)  # identity 1 has no image
    write_records(source, str(path), size=(112, 112), progress=quiet)
    return source


def test_written_set_reads_back(tmp_path: Path) -> None:
    written(tmp_path / "out.rec")
    faces = open_faces(tmp_path)
    assert faces.labels.tolist() == [0, 0, 2, 2, 3]
    assert faces.num_classes == 4
    assert [faces.read(i) for i in range(5)] == [
        MAGIC * 3,
        b"\0" * 7,
        b"first",
        b"12" + MAGIC + b"x",
        MAGIC + b"end",
    ]
    # No scan was needed, so there is no cache.
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.idx",
        "out.rec",
        "property",
    ]


def test_genuine_mxnet_reads_what_is_written_here(tmp_path: Path) -> None:
    python = os.environ.get("MXNET_PYTHON")
    if not python:
        pytest.skip(
            "MXNET_PYTHON names no python with mxnet 1.9.1 (see tests/golden/mxnet_records.py)"
        )
    written(tmp_path / "out.rec")
    script = GOLDEN / "mxnet_records.py"
    output = subprocess.run(
        [python, script, "read", tmp_path / "out.rec"], capture_output=True, check=True, text=True
    )
    seen = [json.loads(line) for line in output.stdout.splitlines()]
    faces = open_set(str(tmp_path / "out.rec"))
    images = [(int(faces.labels[i]), faces.read(i)) for i in range(5)]
    ranges = [[1, 3], [3, 3], [3, 5], [5, 6]]
    assert [entry["labels"] for entry in seen] == [
        [6, 10],
        *([label] for label, _ in images),
        *ranges,
    ]
    assert [e["sha256"] for e in seen[1:6]] == [
        hashlib.sha256(data).hexdigest() for _, data in images
    ]
    assert [entry["key"] for entry in seen] == list(range(10))


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_interrupted_writing_continues_to_the_same_bytes(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.writers.records.FLUSH_EVERY", 2)
    written(tmp_path / "whole.rec")
    count = 0

    def stop(step: int) -> None:
        nonlocal count
        count += step
        if count >= after:
            raise Stop

    source = Given(
        [b"first", MAGIC * 3, b"12" + MAGIC + b"x", b"\0" * 7, MAGIC + b"end"], [2, 0, 2, 0, 3], 4
    )
    target = tmp_path / "cut.rec"
    with pytest.raises(Stop):
        write_records(source, str(target), size=(112, 112), progress=stop)
    assert not target.exists()
    write_records(source, str(target), size=(112, 112), progress=quiet)
    assert target.read_bytes() == (tmp_path / "whole.rec").read_bytes()
    assert target.with_suffix(".idx").read_bytes() == (tmp_path / "whole.idx").read_bytes()


def test_a_set_beside_another_is_refused_where_it_would_change_its_identities(
    tmp_path: Path,
) -> None:
    written(tmp_path / "train.rec")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"train\.rec is in that folder.*a folder of its own"):
        write_records(
            Given([b"a", b"b"], [0, 1], 2),
            str(tmp_path / "more.rec"),
            size=(112, 112),
            progress=quiet,
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_keys_beyond_float32_are_refused(tmp_path: Path) -> None:
    source = Given([], [], 1 << 24)
    with pytest.raises(ValueError, match="keys above 16777216"):
        write_records(source, str(tmp_path / "big.rec"), size=(1, 1), progress=quiet)


def read_all(faces: FaceSet, results: Queue[list[str]]) -> None:
    results.put([hashlib.sha256(faces.read(i)).hexdigest() for i in range(len(faces))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(method: str, copied: Path) -> None:
    faces = open_set(str(copied))
    here = [hashlib.sha256(faces.read(i)).hexdigest() for i in range(len(faces))]
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=read_all, args=(faces, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [here, here]
    for worker in workers:
        worker.join()


def test_reopening_leaks_no_descriptor(copied: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("no /proc to count descriptors in")
    before = len(list(descriptors.iterdir()))
    for _ in range(100):
        open_set(str(copied)).read(0)
    assert len(list(descriptors.iterdir())) == before


def test_real_records() -> None:
    if not REAL.exists():
        pytest.skip("../shared/data/faces/train.rec is not here")
    faces = open_set(str(REAL))
    assert (len(faces), faces.num_classes) == (5998, 291)
    counts = [
        int(line.split("\t")[2])
        for line in REAL.with_name("train_names.txt").read_text().splitlines()
    ]
    assert np.bincount(faces.labels).tolist() == counts
    for index in range(0, 5998, 97):
        assert faces.read(index)[:2] == b"\xff\xd8"
