"""Whole tiny runs: kill and resume, precision, accumulation, bad input, files of the run folder."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import recognition
from data.faces import open_faces
from eval.benchmarks import open_benchmark
from eval.report.write import as_json
from recognition import checkpoint, experiment, logs
from recognition.config import Config, ConfigError
from recognition.distributed import Ranks
from recognition.logs import read_metrics
from recognition.parse import load_config, parse_config
from recognition.parts import Parts
from recognition.run_folder import with_chunk
from recognition.trainer import TrainingError, train

ROOT = Path(__file__).parents[2]
TINY = """
data: {train: "synthetic:identities=6,images=10", size: 32, threads: 2}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 16, dropout: 0.2}
head: {name: arcface, margin: 0.3, scale: 16}
optim: {lr: 0.05, batch_size: 8, epochs: 3}
scheduler: {name: polynomial, warmup_steps: 2}
run: {output: OUTPUT, log_steps: 1, checkpoint_steps: 4, device: cpu}
"""


def _config_file(folder: Path, output: str = "run", **sections: dict[str, object]) -> Path:
    tree = yaml.safe_load(TINY)
    tree["run"]["output"] = str(folder / output)
    for section, values in sections.items():
        tree.setdefault(section, {}).update(values)
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", "--config", str(path), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    shared, local = checkpoint.load(newest)
    return {
        **checkpoint.load_tensors(folder / "model.pt"),
        **shared["backbone"],
        **local[0]["classifier"],
    }


def _deterministic(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["learning_rate"]) for line in lines if "loss" in line]


def test_resume_after_kill_9_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = _run(_config_file(tmp_path, "whole"))
    assert whole.returncode == 0, whole.stderr
    path = _config_file(tmp_path, "killed")
    command = [sys.executable, "-u", "train.py", "--config", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.search(
                r"step 10/", line
            ):  # in mid-epoch (7 steps each), two steps after a checkpoint
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    refused = _run(path)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = _run(path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    left, right = _weights(tmp_path / "whole"), _weights(tmp_path / "killed")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert _deterministic(tmp_path / "whole") == _deterministic(tmp_path / "killed")


def test_sigterm_leaves_a_checkpoint_and_says_how_to_continue(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "train.py", "--config", str(_config_file(tmp_path))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "step 2/" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 130
    assert "--resume" in lines[-1]
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") is not None


def test_two_processes_train_and_one_continues(tmp_path: Path) -> None:
    faces = "synthetic:identities=40,images=4,first=99"
    heldout = {"name": "heldout", "protocol": "pairs", "faces": faces, "count": 200}
    path = _config_file(
        tmp_path,
        optim={"batch_size": 4, "epochs": 2},
        run={"checkpoint_steps": 0},
        evaluate={"sets": [heldout]},
    )
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = [*torchrun, "train.py", "--config", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    assert done.stdout.count("evaluate heldout: ") == 2  # one line per evaluation, from rank 0
    assert done.stdout.count("heldout/accuracy") == 2
    # The ranks embedded three batches with the statistics of rank 0, which are those in model.pt.
    (written,) = json.loads((folder / "results.json").read_text())["results"]
    model = recognition.load(folder, device="cpu")
    assert written == as_json(open_benchmark(heldout)(model, model.size))
    # 60 images, 8 per step
    assert [step for step, _, _ in _deterministic(folder)] == list(range(1, 15))
    newest = folder / "checkpoints" / "step_00000014"
    _, both = checkpoint.load(newest)
    assert [len(local["classifier"]["weight"]) for local in both] == [3, 3]
    rates = [rate for _, _, rate in _deterministic(folder)]
    shutil.rmtree(newest)
    alone = _run(path, "--resume")
    assert alone.returncode == 0, alone.stderr
    assert "optim.batch_size=4 optim.accumulation=2, which keeps" in alone.stdout
    assert [step for step, _, _ in _deterministic(folder)] == list(range(1, 15))
    assert [rate for _, _, rate in _deterministic(folder)] == rates
    assert alone.stdout.count("heldout/accuracy") == 1
    assert _weights(folder)["weight"].shape[0] == 6


def test_run_folder_holds_all_promised_files(tmp_path: Path) -> None:
    sets = [{"name": "lfw", "faces": "synthetic:identities=12,images=4,first=1000", "count": 40}]
    done = _run(
        _config_file(
            tmp_path,
            optim={"epochs": 1},
            evaluate={"sets": sets, "published": "casia_ir18_adaface"},
        )
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    expected = [
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "model.pt",
        "results.json",
        "results.md",
        "training.png",
    ]
    assert {name for name in expected if not (folder / name).exists()} == set()
    assert list(folder.glob("tensorboard/events*"))
    assert list(folder.glob("*roc*.png"))
    assert not list(folder.rglob("*.partial"))
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["training_set"] == {"images": 60, "identities": 6}
    table = [
        line.split("|")
        for line in (folder / "results.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert (
        dict(zip(map(str.strip, table[0]), map(str.strip, table[2]), strict=True))["published"]
        == "99.22"
    )
    assert "| lfw |" in done.stdout
    assert str(folder) in done.stdout.splitlines()[-1]
    model = recognition.load(folder, device="cpu")
    images = torch.zeros(2, 3, model.size, model.size, dtype=torch.uint8)
    assert model.embed(images).shape == (2, 16)


KEEP, SCALE = "optim.changed_batch=keep_rate", "optim.changed_batch=scale_rate"
# The overrides of a run and of its resume; then the images per step, planned and after the resume,
# and what the planned rates are multiplied by.
CHANGES: dict[str, tuple[list[str], list[str], int, int, float]] = {
    "without accumulation": (["optim.accumulation=2"], ["optim.accumulation=1"], 16, 16, 1),
    "a smaller batch": ([], ["optim.batch_size=4"], 8, 8, 1),
    "keep the rate, smaller": ([], ["optim.batch_size=2", KEEP], 8, 2, 1),
    "keep the rate, larger": ([], ["optim.batch_size=20", KEEP], 8, 20, 1),
    "scale the rate": ([], ["optim.batch_size=12", SCALE], 8, 12, 1.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_with_another_batch(tmp_path: Path, change: str) -> None:
    before, after, planned, size, share = CHANGES[change]
    path = _config_file(tmp_path, run={"keep": 100}, evaluate={"every_epochs": 0})
    folder = experiment.run(load_config(path, before), "tiny.yaml")
    rates = {line["images"]: line["learning_rate"] for line in read_metrics(folder)[:-1]}
    for saved in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(saved)
    (first,) = (folder / "checkpoints").iterdir()
    first_step = int(first.name.removeprefix("step_"))

    experiment.run(load_config(path, [*before, *after]), "tiny.yaml", resume=True)
    *lines, evaluation = read_metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    epoch = 60 // planned * planned
    place = first_step * planned
    for line in lines[first_step:]:
        place += size
        rest = epoch - place % epoch
        place += rest if rest < size else 0  # it does not fill a step
        assert line["images"] == place
        assert line["epoch"] == place / epoch
        assert line["learning_rate"] == pytest.approx(rates[place // planned * planned] * share)
    assert place == 3 * epoch
    assert (evaluation["step"], evaluation["epoch"]) == (len(lines), 3.0)
    assert "loss" not in evaluation
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    assert newest.name == f"step_{len(lines):08d}"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optim.step_images=16"], "optim.step_images=8, now it is 16"),
        (["optim.batch_size=4", "data.train=synthetic:identities=6,images=11"], "60 images"),
    ],
)
def test_what_a_resume_may_not_change(tmp_path: Path, overrides: list[str], told: str) -> None:
    path = _config_file(tmp_path, optim={"epochs": 1})
    experiment.run(load_config(path), "tiny.yaml")
    with pytest.raises(ConfigError, match=told):
        experiment.run(load_config(path, overrides), "tiny.yaml", resume=True)


def _parts(path: Path, *overrides: str) -> tuple[Config, Parts, Path]:
    config = load_config(path, overrides)
    faces = open_faces(config.data.train, "auto")
    folder = Path(config.run.output)
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu")
    return config, experiment.build_parts(config, faces, device, Ranks()), folder


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains(tmp_path: Path, precision: str) -> None:
    path = _config_file(tmp_path, run={"precision": precision}, optim={"epochs": 8})
    config, parts, folder = _parts(path, "scheduler={name: constant}")
    train(config, parts, folder, dict)
    losses = [loss for _, loss, _ in _deterministic(folder)]
    assert sum(losses[-7:]) / 7 < 0.5 * sum(losses[:7]) / 7


def test_a_step_of_two_micro_batches_is_the_mean_of_both(tmp_path: Path) -> None:
    """The reference is SGD, written out on the mean of the two gradients."""
    path = _config_file(tmp_path, backbone={"dropout": 0.0})
    overrides = (
        "optim.accumulation=2",
        "optim.epochs=1",
        "optim.clip_norm=null",
        "data.augment.flip=0",
        "optim.momentum=0",
    )
    config, parts, folder = _parts(
        path, *overrides, "optim.weight_decay=0", "scheduler={name: constant}"
    )
    _, literal, _ = _parts(path, *overrides)
    batches = [(b.images.contiguous(), b.labels.clone()) for b in literal.loader]
    backbone, classifier = literal.backbone, literal.classifier
    assert isinstance(classifier, nn.Module)
    for first in range(0, len(batches) - 1, 2):
        parameters = [
            p for p in (*backbone.parameters(), *classifier.parameters()) if p.requires_grad
        ]
        gradients = [torch.zeros_like(p) for p in parameters]
        for images, labels in batches[first : first + 2]:
            loss = classifier(backbone, images.float() / 127.5 - 1, labels)
            for total, part in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                total += part / 2
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(0.05 * gradient)
    train(config, parts, folder, dict)
    for name, value in parts.backbone.state_dict().items():
        torch.testing.assert_close(
            value, backbone.state_dict()[name], rtol=1e-3, atol=1e-5, msg=name
        )


def test_a_loss_that_stays_nan_ends_the_run(tmp_path: Path) -> None:
    path = _config_file(tmp_path, optim={"lr": 1e30, "epochs": 30, "clip_norm": None})
    config, parts, folder = _parts(path, "scheduler={name: constant}")
    with pytest.raises(TrainingError, match=r"optim\.lr"):
        train(config, parts, folder, dict)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.train=nowhere.rec", ["data.train", "nowhere.rec"]),
        ("optim.batch_size=4000", ["has 60", "4000"]),
        ("classifier={name: class_pool}", ["optim.batch_size: found 8", "multiple of 6"]),
        ("classifier={name: semi_siamese, size: 2}", ["classifier.size: found 2", "fits is 4"]),
        ("data.train='concat:synthetic:identities=5;nowhere.rec'", ["data.train", "nowhere.rec"]),
        (
            "evaluate.sets=[{name: mine, faces: 'concat:synthetic:;nowhere'}]",
            ["evaluate.sets", "mine", "nowhere"],
        ),
        ("evaluate.sets=[{name: lfw, bin: nowhere.bin}]", ["evaluate.sets", "lfw", "nowhere.bin"]),
        ("evaluate.published=ms1mv3_r100_fastfase", ["evaluate.published", "ms1mv3_r100_fastface"]),
        ("data.train='synthetic:identities=1,images=10'", ["data.train", "identit"]),
    ],
)
def test_bad_input_is_reported_before_training(
    tmp_path: Path, override: str, told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment.run(load_config(_config_file(tmp_path), [override]), "tiny.yaml")
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert not (tmp_path / "run").exists()  # The failed command leaves no folder behind.


def test_an_order_by_name_reaches_the_loader(tmp_path: Path) -> None:
    path = _config_file(tmp_path, optim={"batch_size": 8})
    _, parts, _ = _parts(path, "data.order=balanced")
    for batch in parts.loader:
        assert sorted(torch.bincount(batch.labels)[batch.labels.unique()].tolist()) == [4, 4]
    pooled = ["classifier={name: class_pool, size: 6}", "optim.batch_size=12"]
    with pytest.raises(ConfigError, match=r"data\.order: found 'block'"):
        load_config(path, ["data.order=block", *pooled])


def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = load_config(_config_file(tmp_path), ["run.device=cuda"])
    with pytest.raises(ConfigError, match=r"run\.device.*cuda"):
        experiment.run(config, "tiny.yaml")


def test_an_output_that_is_a_file_and_another_config_on_resume(tmp_path: Path) -> None:
    path = _config_file(tmp_path, optim={"epochs": 1})
    (tmp_path / "file").write_text("something of the user's")
    with pytest.raises(ConfigError, match=r"run\.output"):
        experiment.run(load_config(path, [f"run.output={tmp_path / 'file'}"]), "tiny.yaml")
    experiment.run(load_config(path), "tiny.yaml")
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.05.*0\.01"):
        experiment.run(load_config(path, ["optim.lr=0.01"]), "tiny.yaml", resume=True)


def test_an_evaluation_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, lines in (
        (3600, ["evaluate lfw: 100 images"]),
        (
            0,
            [
                "evaluate lfw: 100 images",
                *(f"evaluate lfw: {n} of 100 images done" for n in (64, 100)),
            ],
        ),
    ):
        monkeypatch.setattr(logs, "EVALUATION_SECONDS", seconds)
        with logs.evaluation_progress(100, name="lfw") as advance:
            advance(64)
            advance(36)
        assert capsys.readouterr().out.splitlines() == lines


def test_resolved_config_of_a_run_reads_back(tmp_path: Path) -> None:
    config = load_config(_config_file(tmp_path, optim={"epochs": 1}))
    folder = experiment.run(config, "tiny.yaml")
    read = parse_config(yaml.safe_load((folder / "config.yaml").read_text()), "config.yaml")
    # The run has chosen a chunk and the images per step, and a resume computes with the same.
    written = replace(config, optim=replace(config.optim, step_images=8))
    assert read == with_chunk(written, read.classifier.options["chunk"])
    assert isinstance(read.classifier.options["chunk"], int)
