"""Steps and states that are not finite: nothing is left of them, and nothing wrong is saved."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.augment import augment
from data.faces import open_faces
from recognition import checkpoint, experiment, trainer
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.finite import Kept, all_finite, check_step
from recognition.freeze import Frozen
from recognition.logs import read_metrics
from recognition.loss_scale import LOWEST, LossScale
from recognition.optimizer import build_optimizer
from recognition.parse import load_config
from recognition.parts import Parts
from recognition.trainer import Progress, TrainingError, train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = """
data: {train: "synthetic:identities=12,images=8", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 16}
head: {name: adaface}
optim: {lr: 0.05, batch_size: 12, epochs: 3, nesterov: false}
scheduler: {name: fastface, warmup_steps: 2}
run: {device: cpu, precision: fp32, log_steps: 1, checkpoint_steps: 2, compile: false}
"""
KINDS = {
    "full": [],
    "full, AdamW": ["optim.name=adamw"],
    "full, fused": ["classifier={name: full, fused: true}"],
    "full, accumulated": ["optim.accumulation=2"],
    "partial": ["classifier={name: partial, sample_rate: 0.5}"],
    "partial, AdamW, accumulated": [
        *("classifier={name: partial, sample_rate: 0.5}", "optim.name=adamw"),
        "optim.accumulation=2",
    ],
    "class pool": ["classifier={name: class_pool, size: 0.9}"],
    "class pool, accumulated": ["classifier={name: class_pool, size: 0.9}", "optim.accumulation=2"],
    "semi-siamese": ["classifier={name: semi_siamese, size: 1}"],
    "semi-siamese, accumulated": [
        *("classifier={name: semi_siamese, size: 1}", "optim.accumulation=2"),
    ],
    "CurricularFace": ["head={name: curricularface}"],
    "fp16": ["run.precision=fp16"],
}


def _config(folder: Path, *overrides: str) -> Config:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return load_config(path, [f"run.output={folder / 'run'}", *overrides])


def _parts(config: Config, *, fused: bool = False) -> Parts:
    """fused: the optimizer of a GPU, which skips a step by itself. It exists on CPUs too."""
    Path(config.run.output).mkdir(parents=True, exist_ok=True)
    faces = open_faces(config.data.train, "auto")
    parts = experiment.build_parts(config, faces, CPU, Ranks())
    if not fused:
        return parts
    assert isinstance(parts.classifier, nn.Module)
    optimizer = build_optimizer(
        config.optim, parts.backbone, Frozen(), parts.classifier, fused=True
    )
    return replace(parts, optimizer=optimizer)


def _tensors(node: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _tensors(child, f"{name}/{key}")


def _snapshot(parts: Parts) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in _tensors(parts.state_dict())}


def _windows(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder) if "loss" in line]


def _spoil(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], value: float) -> None:
    """From now on the images of the micro-batches that `bad` counts become `value`."""
    calls = -1

    def spoiled(images: torch.Tensor, options: Any, seed: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        done = augment(images, options, seed)
        return done * 0 + value if bad(calls) else done

    monkeypatch.setattr(trainer, "augment", spoiled)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_skipped_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fused: bool
) -> None:
    config = _config(tmp_path, *KINDS[kind])
    parts, progress = _parts(config, fused=fused), Progress()
    steps = trainer._steps(parts.loader, config)
    # A scale that no gradient of these steps needs to be halved for.
    parts.loss_scale.load_state_dict({"scale": 64.0, "_growth_tracker": 0})
    for _ in range(2):
        trainer.optimizer_step(config, parts, next(steps), progress)
    before = _snapshot(parts)
    skips = int(progress.skipped_steps)

    # With accumulation only the second of two micro-batches is bad.
    last = config.optim.accumulation - 1
    _spoil(monkeypatch, lambda call: call == last, float("inf"))
    trainer.optimizer_step(config, parts, next(steps), progress)
    after = _snapshot(parts)
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []

    # The next step is an ordinary one.
    trainer.optimizer_step(config, parts, next(steps), progress)
    progress.fetch()
    assert progress.skipped_steps == skips + 1
    assert progress.skipped_in_a_row == progress.bad_losses_in_a_row == 0
    assert any(not torch.equal(value, after[name]) for name, value in _snapshot(parts).items())
    assert all_finite(parts.state_dict(), Ranks())


@pytest.mark.parametrize(
    "kind", ["full", "full, AdamW", "partial", "class pool", "semi-siamese", "fp16"]
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_is_not_finite_skips_the_step_too(
    tmp_path: Path, kind: str, fused: bool
) -> None:
    """The loss is finite; one number of one gradient is infinite."""
    config = _config(tmp_path, *KINDS[kind])
    parts, progress = _parts(config, fused=fused), Progress()
    steps = trainer._steps(parts.loader, config)
    trainer.optimizer_step(config, parts, next(steps), progress)
    before, skips = _snapshot(parts), int(progress.skipped_steps)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(gradient)
        mask.view(-1)[0] = torch.inf
        return gradient + mask

    weight = list(parts.backbone.parameters())[3]
    hook = weight.register_hook(spoil)
    trainer.optimizer_step(config, parts, next(steps), progress)
    hook.remove()
    assert all(torch.equal(value, before[name]) for name, value in _snapshot(parts).items())
    progress.fetch()
    assert progress.skipped_steps == skips + 1
    assert progress.bad_losses_in_a_row == 0


def _run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    command = [sys.executable, "train.py", "--config", str(path), f"run.output={folder / 'run'}"]
    return subprocess.run([*command, *overrides], cwd=ROOT, capture_output=True, text=True)


def _check_files(folder: Path) -> list[Path]:
    """The checkpoints, whose numbers are finite, as those of model.pt are."""
    found = sorted((folder / "checkpoints").glob("step_*"))
    for path in found:
        assert all_finite(checkpoint.load(path), Ranks())
    if found:
        assert all_finite(checkpoint.load_tensors(folder / "model.pt"), Ranks())
    return found


def test_a_short_run_that_diverges_fails_and_keeps_its_finite_files(tmp_path: Path) -> None:
    """It has fewer steps than the limit of skipped ones."""
    diverging = ("optim.lr=1e30", "optim.clip_norm=null", "scheduler={name: constant}")
    done = _run(tmp_path, *diverging, "head={name: arcface}")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the last ")
    assert "lower optim.lr" in line
    for path in _check_files(tmp_path / "run"):
        assert int(path.name.removeprefix("step_")) <= 2


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_stops_once_too_many_steps_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    config = _config(tmp_path, "optim.epochs=5")
    parts = _parts(config)
    bad = trainer.MOST_SKIPPED - (0 if ends else 1)
    _spoil(monkeypatch, lambda call: 5 <= call < 5 + bad, float("nan"))
    if not ends:
        assert train(config, parts, tmp_path / "run", dict).skipped_steps == bad
        return
    with pytest.raises(TrainingError, match="the last 30 steps") as caught:
        train(config, parts, tmp_path / "run", dict)
    # Five steps were good, and checkpoints were due after every second one.
    kept = _check_files(tmp_path / "run")
    assert [path.name for path in kept] == ["step_00000002", "step_00000004"]
    assert f"the last finite checkpoint is {kept[-1]}" in str(caught.value)
    lines = _windows(tmp_path / "run")
    assert [line["skipped_steps"] for line in lines] == [0] * 5 + list(range(1, bad + 1))


@pytest.mark.parametrize("bad", [1, 2])
def test_bad_losses_at_the_end_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """One may be an accident, and the weights are as good as before. Two end the run with 1."""
    config = _config(tmp_path)
    parts = _parts(config)
    total = parts.loader.steps.left(0, 3)
    _spoil(monkeypatch, lambda call: call >= total - bad, float("nan"))
    if bad == 1:
        train(config, parts, tmp_path / "run", dict)
        assert _check_files(tmp_path / "run")[-1].name == f"step_{total:08d}"
        return
    with pytest.raises(TrainingError, match="the last 2 steps"):
        train(config, parts, tmp_path / "run", dict)
    assert _check_files(tmp_path / "run")[-1].name < f"step_{total - bad:08d}~"


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path)
    parts = _parts(config)
    steps = 0
    whole_step = trainer.optimizer_step

    def spoiling(*arguments: Any) -> None:
        nonlocal steps
        whole_step(*arguments)
        steps += 1
        if steps == 6:
            next(parts.backbone.parameters()).data.view(-1)[-1] = torch.inf

    monkeypatch.setattr(trainer, "optimizer_step", spoiling)
    with pytest.raises(TrainingError, match=r"not finite at step 6.*step_00000004"):
        train(config, parts, tmp_path / "run", dict)
    assert [path.name[-1] for path in _check_files(tmp_path / "run")] == ["2", "4"]


def test_the_floor_of_the_loss_scale_ends_the_run(tmp_path: Path) -> None:
    config = _config(tmp_path, "run.precision=fp16", "optim.epochs=5")
    parts = _parts(config)
    next(parts.backbone.parameters()).register_hook(lambda gradient: gradient / 0)
    with pytest.raises(TrainingError, match=r"fp16 fell to 0\.000977.*run\.precision=bf16"):
        train(config, parts, tmp_path / "run", dict)
    scales = [line["loss_scale"] for line in _windows(tmp_path / "run")]
    assert scales == [2.0**power for power in range(15, -11, -1)]
    assert scales[-1] == LOWEST


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_scale_is_torchs(seed: int) -> None:
    """Runs of good steps, some longer than the interval, and bad ones between them."""
    draw = torch.Generator().manual_seed(seed)
    ours = LossScale(CPU, enabled=True)
    theirs = torch.amp.GradScaler("cpu", growth_interval=100)
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for length in torch.randint(1, 260, (8,), generator=draw).tolist():
        for step in range(length + 1):
            gradient = torch.randn(3, generator=draw)
            if step == length:
                gradient[1] = torch.nan
            theirs.scale((weight * gradient).sum()).backward()
            theirs.unscale_(optimizer)
            assert weight.grad is not None
            (scaled,) = torch.autograd.grad(ours.scaled((weight * gradient).sum()), weight)
            ours.unscale_([scaled])
            torch.testing.assert_close(scaled, weight.grad, rtol=0, atol=0, equal_nan=True)
            theirs.step(optimizer)
            theirs.update()
            optimizer.zero_grad()
            ours.update(gradient.isfinite().all())
            assert ours.value() == theirs.get_scale()
        # A state of either continues with the same numbers.
        again = LossScale(CPU, enabled=True)
        again.load_state_dict(theirs.state_dict() if length % 2 else ours.state_dict())
        ours = again
    assert LossScale(CPU, enabled=False).state_dict() == {}


def test_the_check_of_a_step_and_of_a_state() -> None:
    one = torch.tensor(1.0)
    for bad in (float("nan"), float("inf"), -float("inf")):
        wrong = torch.tensor(bad)
        assert not check_step(wrong, [one], Ranks()).loss_finite
        assert not check_step(wrong, [one], Ranks()).taken
        verdict = check_step(one, [one, wrong.abs()], Ranks())
        assert verdict.loss_finite
        assert not verdict.taken
        deep = {"a": [torch.ones(2), torch.zeros(0)], "b": ({"c": torch.tensor([1.0, bad])}, 3)}
        assert not all_finite(deep, Ranks())
        assert not all_finite(torch.tensor([bad], dtype=torch.bfloat16), Ranks())
    assert check_step(one, [one], Ranks()).taken
    assert check_step(torch.tensor(1.0).double(), [one], Ranks()).taken
    # Large numbers are finite, and so are integers of all kinds.
    assert all_finite({"w": torch.full((100,), 3e38), "i": torch.arange(3), "n": None}, Ranks())


def test_what_is_kept_comes_back() -> None:
    tensors = [torch.randn(2, 3), torch.tensor(4), torch.randn(5).half(), torch.tensor(1.0)]
    before = [tensor.clone() for tensor in tensors]
    for taken in (True, False):
        kept = Kept(tensors)
        for tensor in tensors:
            tensor.add_(1).mul_(float("nan") if tensor.is_floating_point() and not taken else 1)
        kept.put_back_unless(torch.tensor(taken))
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(tensor, old + 1)
    Kept([]).put_back_unless(torch.tensor(False))


def test_all_ranks_skip_what_one_of_them_must(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    (tmp_path / "small.yaml").write_text(SMALL)
    worker = str(Path(__file__).with_name("finite_worker.py"))
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, worker, tmp_path],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    for text in told:
        found = dict(re.findall(r"^(.+): (.+)$", text, re.MULTILINE))
        expected = {
            "nothing": "0 skipped, 0 bad losses, changed",
            "loss": "1 skipped, 1 bad losses, unchanged",
            "centers": "1 skipped, 0 bad losses, unchanged",
            "save": "refused",
        }
        assert expected.items() <= found.items()  # gloo may print lines of its own
