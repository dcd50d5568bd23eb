"""The run doctor: each trouble in a run that has it, and silence about healthy ones."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.augment import augment
from data.options import options_of
from data.parts import find_part, part_names
from recognition import experiment, trainer
from recognition.config import Part
from recognition.distributed import Ranks
from recognition.doctor import (
    AWAY,
    LINES,
    SEARCH_STEPS,
    Doctor,
    Evaluation,
    Facts,
    Window,
    chance_loss,
    examine,
    examine_evaluations,
    window_of,
)
from recognition.heartbeat import read_heartbeat
from recognition.logs import read_metrics
from recognition.parse import build_part, load_config
from recognition.seen import Seen
from recognition.training_set import open_training_set
from tools import watch

SMALL = """
data: {train: "synthetic:identities=20,images=6", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 64}
head: {name: cosface, margin: 0.2, scale: 16}
optim: {lr: 0.05, batch_size: 24, epochs: 5}
scheduler: {name: constant}
run: {device: cpu, log_steps: 1, trackers: []}
"""
FACTS = Facts(total_steps=2000, chance_loss=10.0, clip_norm=5.0, threads=2, cores=4)


def _run(folder: Path, *overrides: str, resume: bool = False) -> list[dict[str, Any]]:
    """The log lines of a run."""
    (folder / "small.yaml").write_text(SMALL)
    config = load_config(folder / "small.yaml", [f"run.output={folder / 'run'}", *overrides])
    experiment.run(config, "small.yaml", resume=resume)
    return [line for line in read_metrics(folder / "run") if "loss" in line]


def _troubles(lines: Sequence[dict[str, Any]]) -> set[str]:
    return {name for line in lines for name in line.get("trouble", ())}


def test_a_healthy_run_is_told_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A run this small is long enough for the checks, but not for the share of a waiting loader.
    lines = _run(tmp_path, "optim.epochs=8", "optim.clip_norm=100")
    assert len(lines) > 3 * LINES
    assert _troubles(lines) <= {"waits_for_data"}
    assert "warning" not in capsys.readouterr().out or _troubles(lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["embedding_norm"] > 0 for line in lines)
    assert all(-1 <= line["cosine_of_others"] < 0.5 for line in lines)
    assert all(line["clipped"] == 0 for line in lines)


def _told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "warning: step " in line]


def test_a_run_that_learns_nothing_is_told_once_and_not_again_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck = ("optim.lr=1e-9", "run.checkpoint_steps=1", "optim.clip_norm=null")
    lines = _run(tmp_path, *stuck, "run.max_steps=18")
    assert _troubles(lines) - {"waits_for_data"} == {"loss_stuck"}
    (told,) = (line for line in _told(capsys) if "data" not in line.split(".")[0])
    assert "the loss stays at" in told
    _run(tmp_path, *stuck, resume=True)
    assert "the loss stays at" not in capsys.readouterr().out
    beat = read_heartbeat(tmp_path / "run")
    assert beat is not None
    assert any("the loss stays at" in text for text in beat["trouble"])
    shown = watch.describe(watch.look(tmp_path / "run", 1))
    assert [line for line in shown if line.startswith("warning: the loss stays at")]


def test_a_run_with_several_troubles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is always clipped, its rate drops to nothing, and steps are skipped at last."""
    calls = 0

    def spoiled(images: torch.Tensor, options: Any, seed: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return augment(images, options, seed) * (torch.nan if calls > 20 and calls % 2 else 1)

    monkeypatch.setattr(trainer, "augment", spoiled)
    drops = "scheduler={name: multi_step, milestones: [1, 1.2], factor: 0.001}"
    lines = _run(tmp_path, "optim.clip_norm=0.001", drops, "optim.epochs=6")
    expected = {"always_clipped", "rate_zero", "steps_skipped"}
    assert expected <= _troubles(lines)
    assert len(_told(capsys)) == len(_troubles(lines))


def _history(figures: Mapping[str, Callable[[int], Any]]) -> list[Window]:
    """60 log lines of a healthy run, of 20 steps each, but for the given figures by line."""
    healthy: dict[str, Callable[[int], Any]] = {
        "loss": lambda i: 12 * math.exp(-i / 25) + 0.05 * math.sin(i),
        "learning_rate": lambda i: 0.1 * min((i + 1) / 5, 1) * (1 - i / 100) ** 2,
        "data_wait": lambda i: 0.4 if i == 0 else 0.01,
        "clipped": lambda i: 1.0 if i < 4 else 0.1,
        "gradient_norm": lambda i: 3.0,
        "loss_scale": lambda i: 2.0 ** (12 - i % 2),
        "skipped_steps": lambda i: 5 + i // 5,
        "embedding_norm": lambda i: 16 + i / 10,
        "cosine_of_others": lambda i: 0.02,
    }
    made = {**healthy, **figures}
    return [
        Window(step=20 * (i + 1), **{name: value(i) for name, value in made.items()})
        for i in range(60)
    ]


# A figure that goes wrong at line 30, by trouble; then a word of the advice.
WRONG: dict[str, tuple[dict[str, Callable[[int], Any]], str]] = {
    # A margin makes 10 out of ln C. The loss falls to it and stays, as with s = 64.
    "loss_stuck": (
        {
            "loss": lambda i: 12 - i / 15 if i < 30 else 10.0 + 0.02 * math.sin(i),
            "learning_rate": lambda i: 0.1,
        },
        "optim.lr",
    ),
    "embeddings_collapse": (
        {"cosine_of_others": lambda i: min(max(0.03 * (i - 30), 0.0), 0.9)},
        "warm-up",
    ),
    "always_clipped": ({"clipped": lambda i: 1.0 if i >= 30 else 0.9}, "optim.clip_norm"),
    "scale_falls": ({"loss_scale": lambda i: 2.0 ** (12 - max(i - 30, 0))}, "bf16"),
    "steps_skipped": ({"skipped_steps": lambda i: 5 + 8 * max(i - 30, 0)}, "optim.lr"),
    "waits_for_data": ({"data_wait": lambda i: 0.3 if i >= 30 else 0.0}, "data.threads"),
    "norm_blows_up": (
        {"embedding_norm": lambda i: 16 * 1.3 ** max(i - 30, 0)},
        "optim.weight_decay",
    ),
    "rate_zero": ({"learning_rate": lambda i: 0.1 if i < 30 else 0.0}, "scheduler"),
}


@pytest.mark.parametrize("trouble", WRONG)
def test_a_figure_that_goes_wrong_is_found_within_some_lines(trouble: str) -> None:
    figures, advice = WRONG[trouble]
    windows = _history(figures)
    found = [examine(windows[: i + 1], FACTS) for i in range(len(windows))]
    first = next(i for i, one in enumerate(found) if one)
    assert 30 < first < 55
    assert set(found[-1]) == {trouble}
    assert advice in found[-1][trouble]
    assert "\n" not in found[-1][trouble]


@pytest.mark.parametrize(
    "harmless",
    [
        {},
        # One bad line is none.
        {"data_wait": lambda i: 0.9 if i == 40 else 0.0},
        {"clipped": lambda i: 0.0 if i % 7 == 3 else 1.0},
        # Always clipped, but for a fifth of the run only.
        {"clipped": lambda i: 1.0 if 30 <= i < 50 else 0.9},
        # Above chance, but falling; and not falling, but far below it.
        {"loss": lambda i: 40 * 0.99**i},
        {"loss": lambda i: 3.0},
        # The rate ends at zero, as planned.
        {"loss": lambda i: 12.0, "learning_rate": lambda i: 0.002 * (i + 1)},
        {"cosine_of_others": lambda i: 0.95 * 0.93**i},
        {name: lambda i: None for name in ("clipped", "loss_scale", "embedding_norm")},
        {"loss": lambda i: math.nan},
    ],
    ids=range(10),
)
def test_what_looks_alike_is_harmless(harmless: dict[str, Callable[[int], Any]]) -> None:
    windows = _history(harmless)
    assert [dict(examine(windows[: i + 1], FACTS)) for i in range(60)] == [{}] * 60


def test_a_rate_that_ends_at_zero_is_as_planned() -> None:
    facts = replace(FACTS, total_steps=60 * 20)
    windows = _history({"learning_rate": lambda i: 0.1 * max(0.0, 1 - i / 56) ** 2})
    assert all(not examine(windows[: i + 1], facts) for i in range(60))


def test_fp16_may_search_its_scale() -> None:
    """The first scale is 2^16, and a large network may end at 2^4: within the first lines."""
    windows = [
        Window(
            step=10 * (i + 1),
            loss=10.0 - i / 5,
            learning_rate=0.1,
            loss_scale=2.0 ** (16 - min(i + 3, 12)),
            skipped_steps=min(i + 3, 12),
        )
        for i in range(30)
    ]
    assert windows[9].step == SEARCH_STEPS
    assert all(not examine(windows[: i + 1], FACTS) for i in range(30))


def _evaluations(*figures: tuple[float, float]) -> list[Evaluation]:
    """(accuracy, loss) by evaluation, of a set with ten folds."""
    return [
        Evaluation(100 * (i + 1), loss, {"lfw": accuracy}, {"lfw": 0.4})
        for i, (accuracy, loss) in enumerate(figures)
    ]


@pytest.mark.parametrize(
    ("figures", "falls"),
    [
        ([(90, 5), (92, 4), (89, 3), (88, 2)], True),
        ([(90, 5), (92, 4), (89, 3), (91.5, 2)], False),  # one evaluation may be bad
        ([(90, 5), (92, 4), (91.5, 3), (91.2, 2)], False),  # within the error
        ([(90, 5), (92, 4), (89, 6), (88, 7)], False),  # the loss rises too: another trouble
        ([(90, 5), (85, 4)], False),
        ([(90, 5), (91, 4), (92, 3), (93, 2)], False),
        ([], False),
    ],
)
def test_accuracy_that_falls_while_the_loss_falls(
    figures: list[tuple[float, float]], falls: bool
) -> None:
    found = examine_evaluations(_evaluations(*figures))
    assert set(found) == ({"accuracy_falls"} if falls else set())
    if falls:
        assert "run.keep_best=lfw/accuracy" in found["accuracy_falls"]


def test_a_trouble_is_told_again_only_after_it_went_away() -> None:
    doctor, told = Doctor(FACTS), []
    away = AWAY - LINES
    waits = [0.0] * 10 + [0.5] * 20 + [0.0] * away + [0.5] * 10 + [0.0] * (away + 1) + [0.5] * 10
    for i, wait in enumerate(waits):
        names, texts = doctor.look(
            {"step": i + 1, "loss": 9.0 - i / 50, "learning_rate": 0.1, "data_wait": wait}
        )
        assert set(names) == set(doctor.found) <= {"waits_for_data"}
        told += [i] * len(texts)
    # The second series begins before the first was over for long enough.
    assert told == [10 + LINES - 1, len(waits) - 10 + LINES - 1]


def test_evaluations_are_read_from_lines() -> None:
    doctor, told = Doctor(FACTS), []
    for i, accuracy in enumerate((90.0, 95.0, 80.0, 70.0)):
        step = {"step": i, "learning_rate": 0.1}
        doctor.look({**step, "loss": 4.0 - i})
        names, texts = doctor.look({**step, "a/accuracy": accuracy, "a/accuracy_std": 2.0})
        told.append((names, len(texts)))
    assert told == [([], 0)] * 3 + [(["accuracy_falls"], 1)]
    assert list(doctor.found) == ["accuracy_falls"]


def test_damaged_and_older_lines_are_no_reason_to_fail() -> None:
    old = {"step": 3, "loss": 2.0, "learning_rate": 0.1, "trouble": "x", "clipped": "y"}
    assert window_of(old) == Window(step=3, loss=2.0, learning_rate=0.1)
    assert window_of({"step": 3, "loss": None, "learning_rate": 0.1}) is None
    lines = [old, {"step": 4}, {"step": 5, "loss": "x"}, {"a/accuracy": 3.0}, {}]
    assert Doctor(FACTS, json.loads(json.dumps(lines))).found == {}


CLASSES = 50


@pytest.mark.parametrize("name", part_names("recognition.heads"))
def test_a_network_that_tells_nobody_apart_has_the_loss_of_chance(name: str) -> None:
    """The reference: a softmax of embeddings and centers that are all the same vector."""
    options = options_of(find_part("recognition.heads", name).build)
    head = build_part(
        "recognition.heads", Part(name, {k: v.default for k, v in options.items()}), seed=0
    )
    chance = chance_loss(head, CLASSES)
    losses = []
    for cos in (0.0, 0.3, 1.0):
        for norm in (1.0, 20.0, 110.0):
            own, norms = torch.tensor([cos]).double(), torch.tensor([norm]).double()
            logits = head.scale * head.negatives(own.expand(1, CLASSES), own[:, None])
            logits[0, 3] = head.scale * head.target(own, norms)[0]
            loss = F.cross_entropy(logits, torch.tensor([3]))
            penalty = head.penalty(norms)
            losses.append(float(loss if penalty is None else loss + penalty.mean()))
    assert chance <= min(losses) + 1e-6
    assert chance >= 0.9 * min(losses) - 1e-6  # the grid is finer, and ElasticFace draws margins


def test_the_loss_of_chance_is_ln_c_without_a_margin() -> None:
    head = build_part(
        "recognition.heads",
        Part("combined", {"m1": 1.0, "m2": 0.0, "m3": 0.0, "scale": 64.0, "gradient": "exact"}),
    )
    assert chance_loss(head, 1000) == pytest.approx(math.log(1000))


class Constant(nn.Module):
    """A network that gives every image the same embedding."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 64, requires_grad=True)


@pytest.mark.parametrize(
    "classifier",
    [
        "full",
        "{name: full, sub_centers: 3}",
        "{name: partial, sample_rate: 0.5}",
        "{name: class_pool, size: 1.0}",
        "{name: class_pool, size: 1.0, swap: false}",
    ],
)
def test_a_run_whose_embeddings_are_all_the_same_has_the_loss_of_chance(
    tmp_path: Path, classifier: str
) -> None:
    """The network's embeddings are one constant, and so are the centers."""
    (tmp_path / "small.yaml").write_text(SMALL)
    overrides = [f"run.output={tmp_path}", f"classifier={classifier}"]
    overrides += ["data.train=synthetic:identities=60,images=4"]
    config = load_config(tmp_path / "small.yaml", overrides)
    faces = open_training_set(config.data)
    parts = experiment.build_parts(config, faces, torch.device("cpu"), Ranks())
    same, constant = torch.ones(64), Constant()
    net: Any = parts.classifier
    with torch.no_grad():
        if hasattr(net, "pool"):
            net.gallery = Constant()
        else:
            net.weight.copy_(same.expand_as(net.weight))
    losses = []
    for batches in trainer._steps(parts.loader, config):
        parts.classifier.before_step(0.0)
        for batch in batches:
            loss = net(constant, batch.images.float(), batch.labels, batch.sample)
            losses.append(float(loss.detach()))
        if len(losses) > 20:
            break
    assert losses[-1] == pytest.approx(parts.chance_loss, rel=0.05)


def test_embeddings_are_measured_as_they_were_computed() -> None:
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(12, 5, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 5, 6])
    seen = Seen()
    seen.noting(lambda images: embeddings, labels)(torch.zeros(12))
    figures, norms = seen.measure()
    expected = [
        float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0))
        for i in range(12)
        for j in range(12)
        if labels[i] != labels[j]
    ]
    assert figures["cosine_of_others"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert norms.tolist() == pytest.approx(embeddings.norm(dim=1).tolist(), rel=1e-5)
    assert figures["embedding_norm"] == pytest.approx(np.median(norms))
    # They are measured once, and half a batch has the first labels.
    assert seen.measure()[0] == {}
    seen.noting(lambda images: embeddings[:2] * math.nan, labels)(torch.zeros(2))
    assert seen.measure()[0] == {}


def test_the_names_of_the_guide_are_those_of_the_checks() -> None:
    page = (Path(__file__).parents[2] / "docs/guides/watching-a-run.md").read_text()
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named == {*WRONG, "accuracy_falls"}
