"""Signals and failing evaluations: what is saved stays, and what was missed is made up."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from recognition import checkpoint, experiment
from recognition.distributed import Ranks
from recognition.stop import STEPS_BETWEEN, Agreement, Stop, Stopped, stop_on_signals
from train import main

ROOT = Path(__file__).parents[2]
TINY = """
data: {train: "synthetic:identities=6,images=10", size: 32, threads: 2}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 16}
head: arcface
optim: {lr: 0.05, batch_size: 8, epochs: 2}
scheduler: constant
evaluate:
  sets:
    - {name: held out, faces: "synthetic:identities=12,images=8,first=1000", count: 400}
run: {output: OUTPUT, log_steps: 1, device: cpu}
"""
Lines = Iterator[str]


def config_in(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text.replace("OUTPUT", str(folder / "run")))
    return path


@contextmanager
def training(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "train.py", "--config", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def signaled(process: subprocess.Popen[str], line: str, *numbers: signal.Signals) -> str:
    """The last line of a run that gets signals when it has printed `line`."""
    last = ""
    assert process.stdout is not None
    for last in process.stdout:
        if line in last:
            for number in numbers:
                process.send_signal(number)
            line = "no such line again"
    process.wait()
    return last


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def step_of_newest(folder: Path) -> int:
    newest = checkpoint.newest(folder / "run/checkpoints")
    assert newest is not None
    return int(newest.name.removeprefix("step_"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_is_seen_within_a_step(number: signal.Signals, tmp_path: Path) -> None:
    path = config_in(tmp_path)
    with training(str(path), "evaluate.sets=[]", "run.log_steps=1") as process:
        last = signaled(process, "step 2/", number)
        assert process.returncode == 130
    assert f"stopped by {number.name} at step " in last
    assert step_of_newest(tmp_path) in (2, 3, 4)  # a step may have run while the line was read
    command = shlex.split(last.partition("go on with: ")[2])
    assert command == ["python", "train.py", "--config", str(path), "evaluate.sets=[]"] + [
        "run.log_steps=1",
        "--resume",
    ]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name
)
def test_a_signal_while_the_run_is_built_leaves_nothing(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build_parts(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(experiment, "build_parts", build_parts)
    assert main(["--config", str(config_in(tmp_path))]) == 130
    assert f"stopped by {number.name} before the first step" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_a_signal_ended_is_made_up(tmp_path: Path) -> None:
    path = config_in(tmp_path)
    with training(str(path)) as process:
        last = signaled(process, "evaluate held out", signal.SIGTERM)
        assert process.returncode == 130
    assert "in an evaluation" in last
    assert step_of_newest(tmp_path) == 7
    assert all("loss" in line for line in metrics(tmp_path))

    done = subprocess.run(
        [sys.executable, "train.py", "--config", str(path), "--resume"], cwd=ROOT, check=True
    )
    assert done.returncode == 0
    evaluated = [line["step"] for line in metrics(tmp_path) if "held out/accuracy" in line]
    assert evaluated == [7, 14]


def test_a_finished_run_is_not_evaluated_again(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--config", str(config_in(tmp_path))]
    for resume in ([], ["--resume"]):
        subprocess.run([*command, "optim.epochs=1", *resume], cwd=ROOT, check=True)
    assert [line["step"] for line in metrics(tmp_path) if "loss" not in line] == [7]


def test_a_set_that_fails_later_is_reported_and_training_goes_on(tmp_path: Path) -> None:
    """The folder of the set vanishes after the start."""
    faces = tmp_path / "faces"
    for person in range(4):
        (faces / f"p{person}").mkdir(parents=True)
        for image in range(4):
            picture = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
            cv2.imwrite(str(faces / f"p{person}/{image}.png"), picture)
    text = TINY.replace(
        '"synthetic:identities=12,images=8,first=1000", count: 400', f"{faces}, count: 20"
    )
    with training(str(config_in(tmp_path, text))) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 1/" in line:
                shutil.rmtree(faces)
        process.wait()
        assert process.returncode == 0
    assert step_of_newest(tmp_path) == 14
    assert "held out" in (tmp_path / "run/results.md").read_text()


def test_a_set_that_cannot_be_opened_is_refused_before_the_first_step(tmp_path: Path) -> None:
    text = TINY.replace("count: 400", "count: 4000")
    done = subprocess.run(
        [sys.executable, "train.py", "--config", str(config_in(tmp_path, text))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "evaluate.sets: held out: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_second_signal_leaves_at_once() -> None:
    child = os.fork()
    if child == 0:
        with stop_on_signals() as stop:
            stop.nothing_to_save = False
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def test_handlers_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop, pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    stop, agreement = Stop(), Agreement(Ranks(rank, 2), torch.device("cpu"))
    stopped = 0
    for step in range(1, 40):
        if rank == 1 and step == 10:
            stop.nothing_to_save = False
            stop.ask(signal.SIGTERM)
        if agreement.stops(stop):
            stopped = step
            break
    Path(folder, str(rank)).write_text(str(stopped))
    os._exit(0)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    spawn(one_rank, (str(tmp_path),), 2)
    steps = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert steps[0] == steps[1]
    assert 10 <= steps[0] <= 10 + STEPS_BETWEEN
