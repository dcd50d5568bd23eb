"""What a machine can do to a run: one line, exit code 1, and what was saved stays."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from data.loader import UnreadableImages
from recognition import checkpoint, experiment
from recognition.checkpoint import SaveFailed
from recognition.config import ConfigError
from recognition.trainer import TrainingError

ROOT = Path(__file__).parents[2]
TINY = """
data: {train: "synthetic:identities=4,images=4", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8}
head: {name: arcface}
optim: {lr: 0.05, batch_size: 8, epochs: EPOCHS}
scheduler: {name: constant}
run: {output: OUTPUT, log_steps: 1, device: cpu, checkpoint_steps: 1}
"""


def _config(folder: Path, epochs: int = 3) -> str:
    path = folder / "tiny.yaml"
    text = TINY.replace("EPOCHS", str(epochs)).replace("OUTPUT", str(folder / "run"))
    path.write_text(text)
    return str(path)


PEER = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234\nmore"


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ConfigError("a key"), "a key", 2),
        (TrainingError("no loss"), "no loss", 1),
        (UnreadableImages("no image"), "no image", 1),
        (SaveFailed("no room"), "no room", 1),
        (OSError(errno.EIO, "Input/output error", "/x"), "/x: Input/output error", 1),
        (OSError("of a library\nin two lines"), "of a library in two lines", 1),
        (MemoryError("Unable to allocate 9 GiB"), "memory does not suffice .*9 GiB.*batch", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate\nframe #0"), "memory .*allocate\\)", 1),
        (RuntimeError(PEER), "another process ended.*\\(Connection closed by peer\\)", 1),
    ],
)
def test_an_error_of_files_machine_or_other_ranks_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
    code: int,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "run", fail)
    assert train.main(["--config", _config(tmp_path)]) == code
    assert re.fullmatch(f"error: .*{line}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("bug", [RuntimeError("size mismatch"), KeyError("x"), AssertionError()])
def test_a_bug_shows_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise bug

    monkeypatch.setattr(experiment, "run", fail)
    with pytest.raises(type(bug)):
        train.main(["--config", _config(tmp_path)])


def _fill_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def _remove_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (_fill_disk, r"step_0+3\.partial/.*No space left .*--resume goes on from .*step_0+2"),
        (_remove_folder, r"run/.*No such file or directory"),
    ],
)
def test_a_drive_that_fails_in_mid_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[Path, pytest.MonkeyPatch], None],
    line: str,
) -> None:
    folder, save, calls = tmp_path / "run", checkpoint.save, []

    def save_and_fail(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            fault(folder, monkeypatch)
        return save(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", save_and_fail)
    config = _config(tmp_path)
    assert train.main(["--config", config]) == 1
    assert re.fullmatch(f"error: .*{line}.*\n", capsys.readouterr().err)
    monkeypatch.undo()
    if folder.exists():
        assert not list(folder.rglob("*.partial"))
        assert train.main(["--config", config, "--resume"]) == 0
        assert "step_00000002" in capsys.readouterr().out


FULL = """
import errno, os, sys
import train
from recognition import checkpoint
save = checkpoint.save_tensors
def refuse(path, state):
    if path.name == "rank_1.pt" and "step_00000002" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return save(path, state)
checkpoint.save_tensors = refuse
sys.exit(train.main(sys.argv[1:]))
"""


def _torchrun(script: Path, config: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), "--config", config]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_full_disk_of_one_rank_is_told_once_and_loses_nothing(tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL)
    with _torchrun(script, _config(tmp_path)) as process:
        output = process.communicate()[0]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert "rank_1.pt: No space left on device; --resume goes on from" in errors[0]
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]


def test_a_rank_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    with _torchrun(ROOT / "train.py", _config(tmp_path, epochs=100_000)) as process:
        assert process.stdout is not None
        before = next(line for line in process.stdout if "step 3/" in line)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = {
            number
            for child in children
            for text in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if (number := int(child)) and text == b"RANK=1"
        }
        (killed,) = ranks
        os.kill(killed, signal.SIGKILL)
        output = before + process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL)" in output
    # Rank 0 may be ended by torchrun before it meets its own error.
    own = output.partition("torch.distributed.elastic")[0].partition("torch/distributed/elastic")[0]
    assert "Traceback" not in own
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert all(line.startswith("error: rank 0: another process ended") for line in errors)
    assert len(errors) <= 1
