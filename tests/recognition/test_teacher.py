"""Runs that are taught by a teacher, and the file of its vectors."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import recognition.teacher_vectors
from data.augment import augment
from data.decode import decode
from data.fingerprint import fingerprint_of
from data.types import FaceSet
from eval.embed import embed_faces
from recognition import checkpoint, experiment, load, trainer
from recognition.config import Config, ConfigError
from recognition.distributed import Ranks
from recognition.parse import load_config
from recognition.parts import Parts
from recognition.teacher_vectors import open_teacher, part_of
from recognition.trainer import Progress
from recognition.training_set import open_training_set
from tools.export import main as export

CPU = torch.device("cpu")
SMALL = """
data: {train: "synthetic:identities=6,images=8", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8, dropout: 0.1}
head: {name: curricularface, scale: 16}
optim: {lr: 0.02, batch_size: 12, epochs: 2, nesterov: false}
scheduler: {name: constant}
run: {device: cpu, log_steps: 1, checkpoint_steps: 2, keep: 9, output: unused}
"""
CENTERS = ["teacher.centers=1", "teacher.cosine=2"]


def _config(folder: Path, *overrides: str) -> Config:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return load_config(path, [f"run.output={folder / 'run'}", *overrides])


def _run(folder: Path, *overrides: str, resume: bool = False) -> Path:
    return experiment.run(_config(folder, *overrides), "small.yaml", resume=resume)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another size and width, trained for a step."""
    folder = tmp_path_factory.mktemp("teacher")
    other = ["data.size=48", "backbone.embedding=12", "run.max_steps=1", "head=cosface"]
    return _run(folder, *other)


def _faces(config: Config) -> FaceSet:
    return open_training_set(config.data)


def _parts(config: Config) -> Parts:
    faces = _faces(config)
    source = open_teacher(config, faces, fingerprint_of(faces), CPU)
    return experiment.build_parts(config, faces, CPU, Ranks(), source=source)


def _stored(folder: Path, width: int = 12, rows: int = 48) -> Path:
    """Vectors of the small set that nobody's model has computed."""
    path = folder / "vectors.npy"
    np.save(path, np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32))
    return path


def _tensors(node: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _tensors(child, f"{name}/{key}")


def _same(left: Any, right: Any) -> bool:
    one, other = dict(_tensors(left)), dict(_tensors(right))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# Steps and runs.


@pytest.mark.parametrize(
    "options",
    [
        CENTERS,
        [*CENTERS, "run.precision=fp16", "optim.accumulation=2"],
        [*CENTERS, "classifier={name: partial, sample_rate: 0.5}", "optim.accumulation=2"],
        [*CENTERS, "teacher.classifier=false"],
        ["classifier={name: class_pool, size: 6, swap: false}"],
    ],
    ids=["full", "fp16, accumulated", "partial, accumulated", "AdaDistill", "class pool"],
)
def test_nothing_is_left_of_a_skipped_step(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path, f"teacher.vectors={_stored(tmp_path)}", *options)
    Path(config.run.output).mkdir()
    parts, progress = _parts(config), Progress()
    parts.loss_scale.load_state_dict({"scale": 64.0, "_growth_tracker": 0})
    steps = trainer._steps(parts.loader, config)
    trainer.optimizer_step(config, parts, next(steps), progress)
    before = {name: value.clone() for name, value in _tensors(parts.state_dict())}
    assert any(name.startswith("/1/teacher") for name in before)

    last, calls = config.optim.accumulation, []

    def spoiled(*given: Any) -> torch.Tensor:
        calls.append(1)
        return augment(*given) * (float("inf") if len(calls) == last else 1)

    monkeypatch.setattr(trainer, "augment", spoiled)
    trainer.optimizer_step(config, parts, next(steps), progress)
    after = dict(_tensors(parts.state_dict()))
    left = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert left == []
    trainer.optimizer_step(config, parts, next(steps), progress)
    progress.fetch()
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (1, 0)
    taught = [name for name in before if name.startswith(("/1/teacher", "/0/optimizer"))]
    after = dict(_tensors(parts.state_dict()))
    assert all(not torch.equal(before[name], after[name]) for name in taught if "head" not in name)


def test_the_student_starts_as_without_a_teacher(tmp_path: Path) -> None:
    alone = _parts(_config(tmp_path))
    taught = _parts(_config(tmp_path, f"teacher.vectors={_stored(tmp_path)}", *CENTERS))
    assert _same(alone.backbone.state_dict(), taught.backbone.state_dict())
    assert _same(alone.state_dict()[1]["classifier"], taught.state_dict()[1]["classifier"])


def test_a_taught_run_resumes_to_the_bit_and_its_model_needs_no_teacher(
    model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(model, own)
    options = [f"teacher.model={own}", *CENTERS, "head=elasticface"]
    whole = _run(tmp_path, *options, f"run.output={tmp_path / 'whole'}")
    parted = [*options, f"run.output={tmp_path / 'parted'}"]
    _run(tmp_path, *parted, "run.max_steps=3")

    # The teacher may have moved, and the vectors are computed again where they are gone.
    moved = own.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "teacher_vectors")
    again = [f"teacher.model={moved}", *CENTERS, "head=elasticface"]
    parted[: len(options)] = again
    _run(tmp_path, *parted, resume=True)
    ends = [
        checkpoint.load(run / "checkpoints/step_00000008") for run in (whole, tmp_path / "parted")
    ]
    assert _same(*ends)

    with pytest.raises(ConfigError, match="its teacher is another one"):
        _run(tmp_path, *parted, f"teacher.model={whole}", resume=True)
    with pytest.raises(ConfigError, match="its teacher is another one"):
        _run(tmp_path, *parted, "teacher.model=null", resume=True)

    shutil.rmtree(moved)
    shutil.rmtree(tmp_path / "teacher_vectors")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for place in (whole, whole / "checkpoints/step_00000008"):
        assert load(place, device="cpu").embed(images).shape == (2, 8)
    assert set(torch.load(whole / "model.pt")) == set(ends[0][0]["backbone"])


def test_an_onnx_file_teaches_as_its_model_does(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "teacher.onnx"
    assert export([str(model), "--to", "onnx", "--out", str(file)]) == 0
    capsys.readouterr()
    vectors = []
    for name, teacher in (("one", model), ("two", file)):
        (tmp_path / name).mkdir()
        _run(tmp_path / name, f"teacher.model={teacher}", "run.max_steps=1")
        (stored,) = (tmp_path / name).rglob("*.npy")
        vectors.append(np.load(stored).astype(np.float32))
    np.testing.assert_allclose(vectors[1], vectors[0], atol=2e-3)  # stored as float16


def test_the_teacher_may_embed_the_augmented_batch(model: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, f"teacher.model={model}", "teacher.augmented=true", "data.size=48")
    parts = _parts(config)
    teacher = load(model, device="cpu")
    batch = next(iter(parts.loader))
    assert parts.teacher is not None
    images, _ = trainer._network_input(config, parts, batch, 0, 0)
    found = parts.teacher.vectors(images, batch.indices)
    expected = teacher.embed((images + 1).clamp(0, 2) / 2)
    assert torch.allclose(found, expected, atol=1e-4)

    smaller = _run(tmp_path, f"teacher.model={model}", "teacher.augmented=true", "data.size=32")
    assert not (tmp_path / "teacher_vectors").exists()
    lines = [json.loads(line) for line in (smaller / "metrics.jsonl").read_text().splitlines()]
    assert all(-1 <= line["teacher/cosine"] <= 1 for line in lines if "loss" in line)


# The file of vectors.


class _OneBad:
    """A set whose image 5 can't be read."""

    def __init__(self, faces: FaceSet) -> None:
        self.faces, self.labels, self.num_classes = faces, faces.labels, faces.num_classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return b"no image" if index == 5 else self.faces.read(index)

    def describe(self, index: int) -> str:
        return f"image {index}"


def test_vectors_are_of_each_image_and_its_mirror_image(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recognition.teacher_vectors, "BLOCK", 20)
    config = _config(tmp_path, f"teacher.model={model}", "run.max_steps=1")
    faces = _faces(config)
    monkeypatch.setattr(experiment, "_open_training_faces", lambda _: _OneBad(faces))
    experiment.run(config, "small.yaml")
    left_out = [line for line in caplog.messages if "left out" in line]
    assert [line[:24] for line in left_out] == ["teacher: left out image "]

    (path,) = (tmp_path / "teacher_vectors").glob("*.npy")
    rows, teacher = np.load(path), load(model, device="cpu")
    assert rows.shape == (48, 12)
    assert rows.dtype == np.float16
    for index in (0, 19, 20, 47):
        pixels = torch.from_numpy(decode(faces.read(index), 48)).permute(2, 0, 1)[None]
        both = teacher.embed(pixels) + teacher.embed(pixels.flip(3))
        expected = F.normalize(both)[0].numpy()
        assert np.abs(rows[index] - expected).max() < 1e-3, index
    assert not rows[5].any()


def test_a_killed_computation_goes_on_behind_its_last_block(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognition.teacher_vectors, "BLOCK", 20)
    path = tmp_path / "v.npy"
    options = [f"teacher.model={model}", f"teacher.vectors={path}", "run.max_steps=1"]
    _run(tmp_path, *options)
    whole, record = path.read_bytes(), json.loads((tmp_path / "v.npy.json").read_text())
    assert record["images"] == 48

    # It was killed in the second block.
    part = part_of(path)
    part.write_bytes(whole[: len(whole) - 17 * 24])
    path.unlink()
    embedded: list[int] = []

    def counted(*given: Any, indices: Any, **options: Any) -> np.ndarray:
        embedded.append(len(indices))
        return embed_faces(*given, indices=indices, **options)

    monkeypatch.setattr(experiment, "embed_faces", counted)
    again = [*options, f"run.output={tmp_path / 'again'}"]
    _run(tmp_path, *again)
    assert path.read_bytes() == whole
    assert embedded == [20, 8]
    assert not part.exists()

    # The next run embeds nothing.
    _run(tmp_path, *options, f"run.output={tmp_path / 'third'}")
    assert embedded == [20, 8]

    # A part whose record is gone is begun anew.
    part.write_bytes(b"\0" * len(whole))
    path.rename(tmp_path / "kept")
    (tmp_path / "v.npy.json").unlink()
    _run(tmp_path, *options, f"run.output={tmp_path / 'fourth'}")
    assert path.read_bytes() == whole


def test_vectors_of_another_set_or_model_are_refused_in_one_line(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "v.npy"
    options = [f"teacher.vectors={path}", "run.max_steps=1"]
    taught = _run(tmp_path, *options, f"teacher.model={model}")

    def refused(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            _run(tmp_path, *options, f"run.output={tmp_path / 'other'}", *overrides)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "other").exists()
        return str(caught.value)

    other_set = "data.train=synthetic:identities=6,images=8,first=50"
    assert f"{path} is of another training set (as many images, but not the" in refused(other_set)
    assert "is of another model than teacher.model" in refused(f"teacher.model={taught}")
    moved = path.rename(part_of(path))
    assert f"{moved} is of another model" in refused(f"teacher.model={taught}")
    assert "v.npy: not found; give teacher.model to compute it" in refused()
    with open(moved, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"v\.npy\.part is being written by another run"):
            _run(tmp_path, *options, f"run.output={tmp_path / 'o'}", f"teacher.model={model}")
    path.with_name("v.npy.json").write_text("[]")
    assert "v.npy.json: not a record of vectors" in refused(f"teacher.model={model}")


def test_stored_vectors_of_others_are_taken_if_they_fit(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    good = np.load(path)
    _run(tmp_path, f"teacher.vectors={path}", "run.max_steps=1")

    def told(rows: np.ndarray, **save: bool) -> str:
        np.save(path, rows, **save)
        with pytest.raises(ConfigError) as caught:
            _run(tmp_path, f"teacher.vectors={path}", f"run.output={tmp_path / 'no'}")
        return str(caught.value)

    assert "has 47 rows, but data.train has 48 images" in told(good[:-1])
    assert "found float64 (48, 12), expected float16 or float32" in told(good.astype(np.float64))
    assert "found float32 (48,)" in told(good[:, 0])
    bad = good.copy()
    bad[7, 3] = np.nan
    assert "row 7 holds NaN or infinity" in told(bad)
    assert "not a whole .npy file" in told(np.array([{"a": 1}] * 48), allow_pickle=True)
    np.save(path, good)
    os.truncate(path, 999)
    with pytest.raises(ConfigError, match="not a whole"):
        _run(tmp_path, f"teacher.vectors={path}", f"run.output={tmp_path / 'no'}")


MODEL = "teacher.model=nowhere"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([MODEL], "teacher.model: nowhere: not found"),
        (["teacher.vectors=no.npy"], "teacher.vectors: no.npy: not found; give teacher.model"),
        (["teacher.vectors=no.npy", "teacher.augmented=true"], "teacher.augmented: found True"),
        ([MODEL, "teacher.cosine=0"], "teacher.cosine: found 0 with teacher.centers=0"),
        (
            [MODEL, "teacher.classifier=false", "teacher.schedule=fade"],
            "teacher.classifier: found False with teacher.schedule=fade",
        ),
        (["teacher.schedule=linear"], "teacher.schedule: found 'linear'"),
    ],
)
def test_a_mistake_is_told_in_one_line(overrides: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _run(tmp_path, *overrides)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_has_no_meaning_with_a_class_pool_is_refused(tmp_path: Path, model: Path) -> None:
    pool = ["classifier={name: class_pool, size: 6}", f"teacher.model={model}"]
    for option in ("teacher.centers=1", "teacher.classifier=false"):
        with pytest.raises(ConfigError, match="the class_pool classifier has no class centers"):
            _run(tmp_path, *pool, option)
    with pytest.raises(ConfigError, match="has no record of its model beside it"):
        _run(tmp_path, f"teacher.model={model}", f"teacher.vectors={_stored(tmp_path)}")


def test_a_fading_teacher_does_not_allow_more_epochs(tmp_path: Path) -> None:
    options = [f"teacher.vectors={_stored(tmp_path)}", "teacher.schedule=fade", "run.max_steps=1"]
    run = _run(tmp_path, *options)
    with pytest.raises(ConfigError, match="teacher.schedule=fade is planned for the epochs"):
        _run(tmp_path, *options, "optim.epochs=3", resume=True)
    assert replace(_config(tmp_path, *options)).teacher.schedule == "fade"
    assert run.is_dir()
