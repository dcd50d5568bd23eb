"""What a run starts from: weights, centers at the means, and how it goes on from there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.decode import decode
from data.faces import open_faces
from data.read_image import BadImage
from data.types import FaceSet
from recognition import checkpoint, experiment
from recognition.classifiers.full import build as build_full
from recognition.config import Config, ConfigError, InitConfig
from recognition.distributed import Ranks
from recognition.heads.arcface import build as arcface
from recognition.init import Weights, load_weights, read_weights, set_centers
from recognition.logs import read_metrics
from recognition.models.facts import ModelFacts
from recognition.models.load import load_model
from recognition.parse import load_config
from recognition.parts import Parts

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = """
data: {train: "synthetic:identities=4,images=6,first=50", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8, dropout: 0.1}
head: {name: arcface, scale: 16}
optim: {lr: 0.05, batch_size: 8, epochs: 2}
scheduler: {name: constant}
run: {output: unused, log_steps: 1, device: cpu, checkpoint_steps: 1, keep: 9}
"""


def _config(folder: Path, *overrides: str) -> Config:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return load_config(path, [f"run.output={folder / 'run'}", *overrides])


def _run(folder: Path, *overrides: str, resume: bool = False) -> Path:
    return experiment.run(_config(folder, *overrides), "small.yaml", resume=resume)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other people."""
    folder = tmp_path_factory.mktemp("source")
    return _run(folder, "data.train=synthetic:identities=6,images=4", "optim.epochs=1")


def _parts(config: Config) -> Parts:
    faces = open_faces(config.data.train, "auto")
    return experiment.build_parts(config, faces, CPU, Ranks(), read_weights(config.init))


def _saved(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(run / "model.pt")


def _newest(run: Path) -> Path:
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    return found


def _state(run: Path, step: int) -> list[Any]:
    """All that a checkpoint holds, but for the seconds that it took."""
    shared, locals_ = checkpoint.load(run / f"checkpoints/step_{step:08d}")
    shared["progress"].pop("seconds")
    return [shared, *locals_]


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)


def test_the_backbone_starts_at_the_weights(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    parts = _parts(_config(tmp_path, f"init.weights={source}"))
    saved = _saved(source)
    assert _equal(dict(parts.backbone.state_dict()), saved)
    numbers = sum(tensor.numel() for tensor in saved.values())
    told = f"init.weights: {source}: all {len(saved)} tensors loaded ({numbers:,} numbers)"
    assert caplog.messages[1:] == [told]


def test_the_gallery_network_of_a_class_pool_starts_there_too(source: Path, tmp_path: Path) -> None:
    pool = ["classifier={name: class_pool, size: 1}", "optim.batch_size=6"]
    parts = _parts(_config(tmp_path, *pool, f"init.weights={source}", "init.freeze=['layer1.*']"))
    classifier: Any = parts.classifier
    gallery = classifier.gallery
    assert _equal(dict(gallery.state_dict()), _saved(source))
    assert not gallery.layer1[0].bn1.training
    assert gallery.layer2[0].bn1.training


def test_probe_and_galleries_of_semi_siamese_training_start_there(
    source: Path, tmp_path: Path
) -> None:
    """Fine-tuning on two photos of each person, as a whole run, and what its first step sees."""
    shallow = [
        *("data.train=synthetic:identities=6,images=2,first=50", f"init.weights={source}"),
        *("classifier={name: semi_siamese, size: 1, agents: 2}", "init.freeze=['layer1.*']"),
        *("optim.batch_size=4", "optim.epochs=2"),
    ]
    parts = _parts(_config(tmp_path, *shallow))
    classifier: Any = parts.classifier
    assert _equal(dict(parts.backbone.state_dict()), _saved(source))
    for agent in classifier.agents:
        assert _equal(dict(agent.state_dict()), _saved(source))
        assert not agent.layer1[0].bn1.training
        assert agent.layer2[0].bn1.training

    # The last one of the run's agents to have its turn is the last one in the list.
    run = _run(tmp_path, *shallow)
    whole = _state(run, 6)
    trained, agents = whole[0]["backbone"], whole[1]["classifier"]
    moved = [not torch.equal(agents[f"agents.{i}.fc.weight"], trained["fc.weight"]) for i in (0, 1)]
    assert moved == [True, True]
    assert torch.equal(
        agents["agents.1.layer1.0.bn1.weight"], _saved(source)["layer1.0.bn1.weight"]
    )

    # It resumes to the bit in the middle of the agents' round.
    for step in (6, 5, 4):
        shutil.rmtree(run / f"checkpoints/step_{step:08d}")
    _run(tmp_path, *shallow, resume=True)
    assert _equal(_state(run, 6), whole)


def test_what_is_skipped_starts_at_random_and_is_reported(source: Path, tmp_path: Path) -> None:
    other = ["backbone.embedding=12", "data.size=48"]
    random = _parts(_config(tmp_path, *other)).backbone
    before, saved = {name: x.clone() for name, x in random.state_dict().items()}, _saved(source)
    config = _config(tmp_path, *other, f"init.weights={source}", "init.skip=['fc.*', 'features.*']")
    weights = read_weights(config.init)
    assert weights is not None
    line = load_weights(random, weights, config)
    for name, tensor in random.state_dict().items():
        anew = name.startswith(("fc.", "features."))
        assert torch.equal(tensor, before[name] if anew else saved[name])
    assert f": {len(before) - 7} of {len(before)} tensors loaded" in line
    assert "; not loaded, as init.skip says: fc.weight, fc.bias, features.weight and 4 more" in line
    assert line.endswith("; made for 32 pixels, and data.size is 48")


def test_names_that_only_the_weights_have_must_be_skipped_and_are_reported(
    source: Path, tmp_path: Path
) -> None:
    config = _config(tmp_path, f"init.weights={source}")
    backbone = _parts(config).backbone
    facts = ModelFacts(architecture=config.backbone, size=32)
    weights = Weights("older", {**_saved(source), "old.weight": torch.zeros(2)}, facts)
    with pytest.raises(
        ValueError,
        match=r"older does not fit: old\.weight 2, here missing \(of 188",
    ):
        load_weights(backbone, weights, config)
    skipping = replace(config, init=InitConfig("older", skip=["old.*"]))
    assert load_weights(backbone, weights, skipping).endswith("; not used: old.weight")


MEANS, POOL = "init.centers=means", "classifier={name: class_pool, size: 1}"
SIAMESE = "classifier={name: semi_siamese, size: 1}"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["backbone.embedding=12"],
            ["fc.weight 8×128, here 12×128", "backbone.embedding=8, or"],
        ),
        (["backbone.depth=34"], ["layer1.2.bn1.weight missing, here 4", "and 141 more (of 331)"]),
        (["init.skip=[fc.*, feature.*]"], ["init.skip: 'feature.*'", "did you mean features.*"]),
        (["init.freeze=[layer1.*, layr2.*]"], ["init.freeze: 'layr2.*'", "did you mean layer2.*"]),
        (["init.freeze=['*']"], ["init.freeze", "nothing of the backbone to train"]),
        (["optim.lr_factors={center: 2}"], ["optim.lr_factors: 'center'", "did you mean centers"]),
        ([MEANS, POOL, "optim.batch_size=6"], ["init.centers: the class_pool classifier has no"]),
        ([MEANS, SIAMESE], ["init.centers: the semi_siamese classifier has no"]),
        (
            ["optim.lr_factors.centers=2", POOL, "optim.batch_size=6"],
            ["optim.lr_factors.centers: the class_pool classifier has no centers"],
        ),
        (
            [MEANS, "classifier={name: partial, sub_centers: 2}"],
            ["init.centers: found 'means' with several centers per class"],
        ),
        (["backbone.bgr=true"], ["was trained on RGB; set backbone.bgr=false"]),
        (["init.weights=nowhere"], ["init.weights: nowhere: not found"]),
    ],
)
def test_a_mistake_is_told_in_one_line_before_the_run(
    source: Path, tmp_path: Path, overrides: list[str], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        _run(tmp_path, f"init.weights={source}", *overrides)
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["init.centers=means", "init.skip=[fc.*]"])
def test_keys_that_need_weights_say_so(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"init\.(centers|skip): found .* without init\.weights"):
        _config(tmp_path, override)


def test_weights_that_are_not_finite_are_refused(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "bad")
    state = _saved(source)
    state["conv1.weight"][0, 0, 0, 0] = torch.nan
    checkpoint.save_tensors(tmp_path / "bad/model.pt", state)
    with pytest.raises(ConfigError, match=r"bad: conv1\.weight holds NaN or infinity"):
        _run(tmp_path, f"init.weights={tmp_path / 'bad'}")


# --- centers at the means


class Alone(Ranks):
    """A rank of several, without the others."""

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@dataclass
class Faces:
    """A set of images that may be missing."""

    labels: np.ndarray
    num_classes: int
    encoded: Sequence[bytes] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self.encoded[index]

    def describe(self, index: int) -> str:
        return f"image {index}"


class Net(torch.nn.Linear):
    """A backbone that nobody calls."""

    embedding = 5

    def __init__(self) -> None:
        super().__init__(1, 5)


def _full(classes: int, ranks: Ranks) -> Any:
    return build_full(Net(), classes, arcface(), ranks, 0, chunk=8)


LABELS, CLASSES = [3, 0, 0, 4, 3, 1, 3, 0], 6  # 2 and 5 have no image


def test_centers_are_the_means_of_the_unit_embeddings() -> None:
    """The reference is a loop in float64. The rows of two ranks are those of one, bit for bit."""
    vectors = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32) * 9
    faces = Faces(np.array(LABELS), CLASSES)
    random = torch.nn.functional.normalize(_full(CLASSES, Ranks()).weight.detach())
    found = []
    for ranks in (Ranks(), Alone(0, 2), Alone(1, 2)):
        classifier = _full(CLASSES, ranks)
        line = set_centers(classifier, faces, lambda indices: vectors[list(indices)], ranks)
        found.append(classifier.weight.detach())
    assert torch.equal(torch.cat(found[1:]), found[0])
    assert line == "init.centers: the mean embeddings of 2 of 6 people"
    for person in range(CLASSES):
        units = [
            vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))
            for vector, label in zip(vectors, LABELS, strict=True)
            if label == person
        ]
        if units:
            mean = np.sum(units, axis=0)
            np.testing.assert_allclose(found[0][person], mean / np.linalg.norm(mean), atol=1e-6)
        else:
            assert torch.equal(found[0][person], random[person])


class Unreadable(Faces):
    """Image 0 lies on a part of the drive that can't be read."""

    def read(self, index: int) -> bytes:
        if index == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "image 0")
        return super().read(index)


@pytest.mark.parametrize(
    ("kind", "told"), [(Faces, "6 bytes"), (Unreadable, os.strerror(errno.EIO))]
)
def test_an_image_that_cannot_be_read_is_left_out(
    kind: type[Faces], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = open_faces("synthetic:identities=4,images=2,size=16", "auto")
    encoded = [b"broken", *(drawn.read(index) for index in range(1, 8))]
    faces = kind(drawn.labels, 4, encoded)
    vectors = np.eye(8, 5, dtype=np.float32) + 1

    def embed(indices: Sequence[int]) -> np.ndarray:
        if 0 in indices:
            raise BadImage("image 0: broken")
        return vectors[list(indices)]

    classifier = _full(4, Ranks())
    set_centers(classifier, faces, embed, Ranks())
    expected = vectors[1] / np.linalg.norm(vectors[1])
    np.testing.assert_allclose(classifier.weight.detach()[0], expected, atol=1e-6)
    assert caplog.messages[0].startswith(f"init.centers: left out image 0: {told}")

    def always(indices: Sequence[int]) -> np.ndarray:
        raise BadImage("no image of them was read")

    with pytest.raises(ValueError, match="no image of them"):
        set_centers(classifier, Faces(drawn.labels[1:], 4, encoded[1:]), always, Ranks())


START = ["init.centers=means", "init.freeze=['conv1.*', 'bn1.*', 'layer1.*']"]


def _expected_means(source: Path, faces: FaceSet) -> np.ndarray:
    """In float64, from embeddings that are computed one image at a time."""
    model = load_model(source, device="cpu")
    sums = np.zeros((faces.num_classes, 8))
    for index, label in enumerate(faces.labels):
        pixels = torch.from_numpy(decode(faces.read(index), model.size)).permute(2, 0, 1)[None]
        vector = model.embed(pixels)[0].double().numpy()
        sums[label] += vector / np.linalg.norm(vector)
    means: np.ndarray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return means


@pytest.mark.parametrize("classifier", ["full", "partial"])
def test_a_run_begins_at_the_means(source: Path, tmp_path: Path, classifier: str) -> None:
    still = ["optim.lr=1e-9", "optim.epochs=1", "optim.weight_decay=0"]
    start = [f"init.weights={source}", *START, f"classifier.name={classifier}"]
    folder = _run(tmp_path, *start, *still)
    centers = checkpoint.load(folder / "checkpoints/step_00000003")[1][0]["classifier"]["weight"]
    faces = open_faces("synthetic:identities=4,images=6,first=50", "auto")
    np.testing.assert_allclose(centers, _expected_means(source, faces), atol=2e-5)


def test_two_processes_begin_at_the_means_of_one(source: Path, tmp_path: Path) -> None:
    still = ["optim.lr=1e-12", "optim.epochs=1", "optim.weight_decay=0"]
    one = _run(tmp_path, f"init.weights={source}", *START, *still)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [*START, *still, f"init.weights={source}", f"run.output={tmp_path / 'two'}"]
    batch = ["--config", str(tmp_path / "small.yaml"), "optim.batch_size=4"]
    done = subprocess.run(
        [*command, "train.py", *batch, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("init.")]
    assert [line.split(": ")[0] for line in told] == ["init.weights", "init.freeze", "init.centers"]
    assert told[2] == "init.centers: the mean embeddings of 4 of 4 people"
    saved = [checkpoint.load(_newest(run))[1] for run in (one, tmp_path / "two")]
    alone, halves = [[local["classifier"]["weight"] for local in locals_] for locals_ in saved]
    torch.testing.assert_close(torch.cat(halves), alone[0], rtol=0, atol=1e-7)


def test_a_trial_of_a_few_steps_goes_on_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    """`run.max_steps` ends in the middle of an epoch; the weights are not read again."""
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    sets = "evaluate.sets=[{name: held, faces: 'synthetic:identities=4,images=3', count: 20}]"
    rates = "optim.lr_factors={centers: 10, 'features.*': 3}"
    options = [f"init.weights={copy}", *START, rates, sets, "evaluate.every_epochs=0"]
    whole = _run(tmp_path, *options)
    trial = tmp_path / "trial"
    options.append(f"run.output={trial}")
    _run(tmp_path, *options, "run.max_steps=2")
    assert _newest(trial).name == "step_00000002"
    *steps, evaluation = read_metrics(trial)
    assert [line["step"] for line in steps] == [1, 2]
    assert evaluation["step"] == 2
    assert evaluation["held/accuracy"] > 0
    assert _equal(_saved(trial), checkpoint.load_tensors(_newest(trial) / "model.pt"))

    shutil.rmtree(copy)
    _run(tmp_path, *options, "run.max_steps=2", resume=True)  # over: nothing more to do
    assert len(read_metrics(trial)) == 3
    _run(tmp_path, *options, resume=True)
    assert _equal(_state(trial, 6), _state(whole, 6))
    shared = _state(whole, 6)[0]
    frozen = {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.running_var", "bn1.weight"}
    for name in frozen:
        assert torch.equal(shared["backbone"][name], _saved(source)[name])
    trained = sum(len(group["params"]) for group in shared["optimizer_groups"])
    assert trained == len(shared["optimizer"]) + 1 + 1  # the centers, and the constant weight


def test_the_evaluation_of_a_trial_that_a_crash_prevented_is_made_up(
    source: Path, tmp_path: Path
) -> None:
    sets = "evaluate.sets=[{name: held, faces: 'synthetic:identities=4,images=3', count: 20}]"
    folder = _run(tmp_path, sets, "run.max_steps=1")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    _run(tmp_path, sets, "run.max_steps=1", resume=True)
    assert [("loss" in line, line["step"]) for line in read_metrics(folder)] == [
        (True, 1),
        (False, 1),
    ]
