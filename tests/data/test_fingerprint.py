"""The fingerprint of a set: equal for a moved copy, different for any other set."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import fingerprint
from data.faces import open_faces
from data.fingerprint import difference, fingerprint_of, keys_and_sizes, stored_fingerprint
from data.parts import part_names
from data.writers.records import write_records
from data.writers.shards import write_shards
from scripts._lmdb import write_lmdb

Row = tuple[int, int, int]  # label, key, size
CLASSES = 3


class Table:
    """A FaceSet of given labels, keys and sizes, without images."""

    def __init__(self, rows: list[Row], names: list[str] | None = None) -> None:
        table = np.array(rows, np.int64).reshape(-1, 3)
        self.labels, self.num_classes = table[:, 0].copy(), CLASSES
        self.rows, self.names = table, names

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        raise AssertionError

    def describe(self, index: int) -> str:
        return f"image {index}"

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[:, 1], self.rows[:, 2]


rows = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, 3), st.integers(0, 3)))


@given(rows, rows)
def test_equal_only_for_equal_sets_and_the_differing_identities_are_found(
    left: list[Row], right: list[Row]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "AT_ONCE", 4)
        before, now = fingerprint_of(Table(left)), fingerprint_of(Table(right))
    assert (before == now) == (left == right)
    assert (difference(before, now, Table(right)) is None) == (left == right)
    for label in range(CLASSES):
        one, other = (Counter(row[1:] for row in side if row[0] == label) for side in (left, right))
        assert (before.sums[label] != now.sums[label]) == (one != other)


def test_the_message_says_what_differs() -> None:
    one = [(0, 1, 10), (0, 2, 10), (1, 3, 10), (2, 4, 10)]
    before = fingerprint_of(Table(one))

    def told(rows: list[Row], names: list[str] | None = None) -> str | None:
        faces = Table(rows, names)
        return difference(before, fingerprint_of(faces), faces)

    assert told(one) is None
    assert told([*one[:2], one[3]]) == (
        "it had 4 images and has 3; identity 1 (without images) is not the same"
    )
    assert told([*one[:2], (1, 3, 11), (2, 5, 10)], ["A", "B\n", "C"]) == (
        r"identity 1 (B\x0a) is not the same, and so are 1 others"
    )
    assert told([one[1], one[0], *one[2:]]) == (
        "it has the same images of each identity, but in another order"
    )


def test_a_checkpoint_keeps_it() -> None:
    before = fingerprint_of(Table([(0, 1, 10), (2, 2, 11)]))
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    stored = stored_fingerprint(torch.load(file, weights_only=True))
    assert stored == before
    assert stored.sums.tolist() == before.sums.tolist()


def _folder(root: Path, longer: int | None = None) -> Path:
    """Four people with three images each. longer: an image with more bytes than usual."""
    faces = open_faces("synthetic:identities=4,images=3,size=16")
    for index in range(len(faces)):
        path = root / f"name_{faces.labels[index]}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(faces.read(index) + bytes(4 * (index == longer)))
    return root


def _in_every_format(root: Path, longer: int | None = None) -> dict[str, str]:
    """The faces of `_folder` in each format: name of the format -> line of the set."""
    faces = open_faces(_folder(root / "folder", longer))
    for kind in ("zip", "tar"):
        write_shards(faces, str(root / kind), kind=kind, shard=5, progress=lambda _: None)
    (root / "rec").mkdir()
    write_records(faces, f"{root}/rec/train.rec", size=(16, 16), progress=lambda _: None)
    write_lmdb(faces, root / "lmdb")
    np.save(root / "list.npy", np.arange(2, 12))
    images = [faces.read(index) for index in range(len(faces))]
    table = pa.table({"image": images, "label": faces.labels})
    pq.write_table(table, root / "a.parquet", row_group_size=3)
    lines = {name: str(root / name) for name in ("folder", "zip", "tar", "lmdb")}
    return {
        **lines,
        "recordio": str(root / "rec"),
        "parquet": str(root / "a.parquet"),
        "concat": f"concat:{root / 'folder'};{root / 'zip'}",
        "subset": f"subset:{root / 'list.npy'};{root / 'zip'}",
        "synthetic": "synthetic:identities=4,images=3,size=16",
    }


def test_a_moved_set_of_every_format_is_the_same(tmp_path: Path) -> None:
    lines = _in_every_format(tmp_path / "here")
    assert sorted(lines) == part_names("data.formats")
    before = {name: fingerprint_of(open_faces(line)) for name, line in lines.items()}
    for name, line in lines.items():  # the second time with the cached index
        faces = open_faces(line)
        assert fingerprint_of(faces) == before[name]
        keys, sizes = keys_and_sizes(faces)
        assert len(keys) == len(sizes) == len(faces)
        assert (np.diff(np.sort(keys)) > 0).all(), name
    shutil.move(tmp_path / "here", tmp_path / "there")
    for name, line in lines.items():
        moved = line.replace(f"{tmp_path}/here", f"{tmp_path}/there")
        assert fingerprint_of(open_faces(moved)) == before[name]


@pytest.mark.parametrize(
    "kind", ["folder", "zip", "tar", "lmdb", "recordio", "parquet", "concat", "subset"]
)
def test_one_other_image_makes_another_set(kind: str, tmp_path: Path) -> None:
    before = fingerprint_of(open_faces(_in_every_format(tmp_path / "one")[kind]))
    now = open_faces(_in_every_format(tmp_path / "two", longer=7)[kind])
    what = difference(before, fingerprint_of(now), now)
    assert what is not None
    assert what.startswith("identity 2 (")


def test_a_renamed_folder_is_another_set(tmp_path: Path) -> None:
    faces = open_faces(_folder(tmp_path / "faces"))
    before = fingerprint_of(faces)
    os.rename(tmp_path / "faces/name_1", tmp_path / "faces/name_9")
    now = open_faces(tmp_path / "faces")
    assert now.labels.tolist() == faces.labels.tolist()
    assert difference(before, fingerprint_of(now), now) == (
        "identity 1 (name_2) is not the same, and so are 2 others"
    )


def test_a_file_that_is_gone_has_no_size(tmp_path: Path) -> None:
    root = _folder(tmp_path / "faces")
    faces = open_faces(root)
    (root / "name_0/0.jpg").unlink()
    sizes = keys_and_sizes(faces)[1]
    assert sizes[0] == -1
    assert sizes[1:].tolist() == [len(faces.read(index)) for index in range(1, len(faces))]
