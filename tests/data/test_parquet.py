"""Parquet files as pyarrow writes them, in the forms of the Hugging Face hub."""

from __future__ import annotations

import copy
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.faces import open_faces
from data.formats import parquet
from data.formats.parquet import ParquetSet
from data.loader import Loader
from data.order import NOT_AT_RANDOM, Blocks, named_order, shuffled_blocks
from recognition import experiment
from recognition.config import ConfigError
from recognition.parse import load_config
from tools import convert, verify

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
IMAGES, GROUP = 24, 5
TINY = """
data: {train: SET, size: 32, threads: 2, order: block}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8}
head: {name: arcface}
optim: {lr: 0.05, batch_size: 4, epochs: 1}
scheduler: {name: constant}
run: {output: OUTPUT, device: cpu}
"""


def _rows() -> tuple[list[bytes], list[int]]:
    """Encoded images and labels of four people, in mixed order."""
    faces = open_faces("synthetic:identities=4,images=6,size=24")
    order = np.random.default_rng(0).permutation(IMAGES).tolist()
    return [faces.read(i) for i in order], faces.labels[order].tolist()


def _write(path: Path, columns: dict[str, Any], metadata: Any = None, group: int = GROUP) -> Path:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=group)
    return path


def _hub(folder: Path, label: Any = None, files: int = 2) -> Path:
    """A folder of files with an image struct and a ClassLabel."""
    folder.mkdir()
    images, labels = _rows()
    features = {"label": {"names": ["ann", "bob", "cem", "dee"], "_type": "ClassLabel"}}
    for number in range(files):
        own = slice(number * IMAGES // files, (number + 1) * IMAGES // files)
        structs = [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images[own])]
        columns = {"image": structs, "label": label or labels[own], "width": [24] * len(structs)}
        name = f"train-{number:05d}-of-{files:05d}.parquet"
        _write(folder / name, columns, {"info": {"features": features}})
    return folder


def _content(faces: Any) -> list[tuple[int, bytes]]:
    return [(label, faces.read(i)) for i, label in enumerate(faces.labels.tolist())]


def test_the_form_of_the_hub(tmp_path: Path) -> None:
    faces = open_faces(_hub(tmp_path / "set"))
    images, labels = _rows()
    assert _content(faces) == list(zip(labels, images, strict=True))
    assert faces.names == ["ann", "bob", "cem", "dee"]  # type: ignore[attr-defined]
    assert faces.describe(12 + GROUP).endswith("train-00001-of-00002.parquet row 0 of group 1")
    assert _content(copy.deepcopy(faces)) == _content(faces)


@pytest.mark.parametrize("kind", ["bytes", "large bytes", "texts", "dictionary"])
def test_other_columns(kind: str, tmp_path: Path) -> None:
    images, labels = _rows()
    texts = ["dcba"[label] for label in labels]
    large = pa.array(images, pa.large_binary()) if kind == "large bytes" else pa.array(images)
    label = {"texts": texts, "dictionary": pa.array(texts).dictionary_encode()}.get(kind, labels)
    path = _write(tmp_path / "a.parquet", {"jpg": large, "person": label, "age": [1] * IMAGES})
    faces = open_faces(path)
    expected = [3 - one for one in labels] if kind in ("texts", "dictionary") else labels
    assert _content(faces) == list(zip(expected, images, strict=True))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"label": [0, 1]}, "no one column of images"),
        (
            {"image": [b"a", b"b"], "x": [0, 1], "y": [0, 1]},
            r"no one column of labels.*x \(int64\)",
        ),
        ({"image": [b"a", b"b"], "label": [0, None]}, "some rows have no label"),
        ({"image": [b"a", b"b"], "label": [0, -1]}, "negative label -1"),
        ({"image": [b"a", b"b"], "label": [0, 3_000_000_000]}, "label 3000000000"),
        ({"image": [], "label": []}, "no one column|holds no row"),
    ],
)
def test_what_is_refused(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    path = _write(tmp_path / "a.parquet", columns)
    with pytest.raises(ValueError, match=told) as error:
        open_faces(path)
    assert "\n" not in str(error.value)


def test_broken_files_and_missing_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structs = [{"bytes": None, "path": "0.jpg"}, {"bytes": b"x", "path": None}]
    path = _write(tmp_path / "a.parquet", {"image": structs, "label": [0, 1]})
    with pytest.raises(ValueError, match="row 0 of group 0: holds no bytes"):
        open_faces(path).read(0)
    whole = path.read_bytes()
    for content in (whole[:-9], b"PAR1", b"", whole[:8] + bytes(40) + whole[48:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet"):
            open_faces(path).read(1)
    path.write_bytes(whole)
    monkeypatch.setattr(parquet, "MOST_GROUP_BYTES", 10)
    with pytest.raises(ValueError, match="smaller row groups"):
        open_faces(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install -e '\.\[parquet\]'"):
        open_faces(path)


def test_an_epoch_in_blocks_reads_each_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = open_faces(_hub(tmp_path / "set"))
    assert isinstance(faces, ParquetSet)
    faces.__dict__["blocks"] = Blocks(faces.blocks.starts, 2)
    loaded, load = [], faces._load

    def count(number: int) -> Any:
        loaded.append(number)
        return load(number)

    monkeypatch.setattr(faces, "_load", count)
    order = named_order(faces.labels, "block", seed=3, batch_size=4, blocks=faces.blocks)
    loader = Loader(faces, batch_size=4, size=24, seed=3, threads=3, order=order)
    assert sum(len(batch.labels) for batch in loader) == IMAGES
    assert sorted(loaded) == list(range(6))
    assert len(faces._groups) <= 8


def test_threads_that_need_one_group_read_it_once(tmp_path: Path) -> None:
    faces = open_faces(_hub(tmp_path / "set"))
    assert isinstance(faces, ParquetSet)
    loaded, load, both = [], faces._load, threading.Barrier(2, timeout=10)

    def slow(number: int) -> Any:
        loaded.append(number)
        both.wait()  # the other thread has asked for the group, or is about to
        return load(number)

    faces._load = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(faces.read, 0)
        second = executor.submit(faces.read, 1)
        both.wait()
        assert [first.result(), second.result()] == _rows()[0][:2]
    assert loaded == [0]


def test_orders_keep_blocks_together() -> None:
    blocks = Blocks(np.array([0, 3, 4, 9]), 1)
    seen = set()
    for epoch in range(20):
        order = shuffled_blocks(blocks, 12, seed=1, epoch=epoch).tolist()
        assert sorted(order) == list(range(12))
        numbers = np.searchsorted(blocks.starts, order, side="right")
        assert np.count_nonzero(np.diff(numbers)) == 3  # each block is one run
        seen.add(tuple(order))
    assert len(seen) == 20


def test_subsets_and_joined_sets_have_blocks_too(tmp_path: Path) -> None:
    line = str(_hub(tmp_path / "set"))
    np.save(tmp_path / "list.npy", np.array([1, 6, 7, 13, 23]))
    chosen: Any = open_faces(line, subset=str(tmp_path / "list.npy"))
    assert chosen.blocks.starts.tolist() == [0, 1, 3, 4]  # groups 0, 1, 3 (rows 12…16) and 5
    joined: Any = open_faces(f"concat:{line};synthetic:identities=2,images=150")
    starts = [0, 5, 10, 12, 17, 22, 24, 24 + 256]
    assert joined.blocks.starts.tolist() == starts


def test_training_in_blocks_and_what_a_random_order_is_told(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    text = TINY.replace("SET", str(_hub(tmp_path / "set")))
    config.write_text(text.replace("OUTPUT", str(tmp_path / "run")))
    for order in ("shuffled", "balanced"):
        with pytest.raises(ConfigError, match=rf"data\.order: found {order}.*tools\.convert"):
            experiment.run(load_config(config, [f"data.order={order}"]), "tiny.yaml")
    pool = ["classifier.name=class_pool", "data.order=shuffled", "optim.batch_size=6"]
    with pytest.raises(ConfigError, match=r"class pool draws images at random.*tools\.convert"):
        experiment.run(load_config(config, pool), "tiny.yaml")
    assert not (tmp_path / "run").exists()
    experiment.run(load_config(config), "tiny.yaml")


def test_tools_read_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _hub(tmp_path / "set")
    assert verify.main([str(source)]) == 0
    assert convert.main([str(source), str(tmp_path / "a.zip")]) == 0
    assert sorted(_content(open_faces(tmp_path / "a.zip"))) == sorted(_content(open_faces(source)))
    capsys.readouterr()
    assert convert.main([str(source), str(tmp_path / "a.rec")]) == 2
    assert NOT_AT_RANDOM in capsys.readouterr().err
