"""What `tools.watch` says about runs that live, ended, failed, or died without a word."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from recognition import heartbeat
from recognition.heartbeat import Heartbeat, is_alive, process_start, read_heartbeat
from recognition.logs import read_metrics
from recognition.stop import Stopped
from tests.recognition.test_finite import SMALL
from tools import watch

ROOT = Path(__file__).parents[2]


def _seen(folder: Path) -> dict[str, Any]:
    return watch.look(folder, 3)


def test_a_heartbeat_tells_where_a_run_stands(tmp_path: Path) -> None:
    beat = Heartbeat(tmp_path, total=100, first=20)
    shown = _seen(tmp_path)
    assert (shown["verdict"], shown["state"], shown["step"]) == ("running", "training", 20)
    assert shown["eta_seconds"] is None
    beat.logged(float("nan"), 5.0)
    beat.stepped(30)
    assert _seen(tmp_path)["step"] == 20  # ten seconds are not over
    beat.doing("saving")
    shown = _seen(tmp_path)
    assert (shown["state"], shown["step"], shown["loss"]) == ("saving", 30, None)
    assert shown["images_per_second"] == 5.0
    # 70 steps are left, and 10 were made since the start.
    assert 0 < shown["eta_seconds"] < 60
    assert list(tmp_path.iterdir()) == [tmp_path / "heartbeat.json"]


def test_heartbeats_follow_the_clock_and_survive_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_SECONDS", 0.0)
    folder = tmp_path / "run"
    folder.mkdir()
    beat = Heartbeat(folder, total=9, first=0)
    beat.stepped(1)
    assert _seen(folder)["step"] == 1
    (folder / "heartbeat.json").unlink()
    folder.rmdir()
    beat.stepped(2)
    with pytest.raises(ValueError, match="no such folder"):
        _seen(folder)


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (None, "finished", None),
        (Stopped("stopped at step 3"), "stopped", "stopped at step 3"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (OSError(28, "No space left on device"), "failed", "OSError: .*No space left on device"),
    ],
)
def test_how_a_run_ended(
    tmp_path: Path, error: BaseException | None, verdict: str, reason: str | None
) -> None:
    expected = pytest.raises(type(error)) if error else nullcontext()
    with expected, heartbeat.heartbeat(tmp_path, total=9, first=0, stops=(Stopped,)) as beat:
        beat.stepped(3)
        if error:
            raise error
    shown = _seen(tmp_path)
    assert (shown["verdict"], shown["step"], shown["eta_seconds"]) == (verdict, 3, None)
    assert shown["reason"] is reason is None or re.fullmatch(str(reason), shown["reason"])


def test_a_process_is_known_by_number_and_begin(tmp_path: Path) -> None:
    Heartbeat(tmp_path, total=9, first=0)
    beat = read_heartbeat(tmp_path)
    assert beat is not None
    assert is_alive(beat) is True
    assert is_alive({**beat, "process_start": None}) is True
    assert is_alive({**beat, "host": "elsewhere"}) is None
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        assert is_alive({**beat, "pid": process.pid, "process_start": 1}) is False
        assert is_alive({**beat, "pid": process.pid, "process_start": None}) is False
    if process_start(os.getpid()) is not None:
        assert is_alive({**beat, "process_start": 1}) is False  # the number went to this process


@pytest.mark.parametrize(
    ("state", "alive", "age", "verdict"),
    [
        ("training", True, 5.0, "running"),
        ("training", True, 500.0, "silent"),
        ("training", None, 500.0, "silent"),
        ("evaluating", True, 500.0, "running"),
        ("saving", False, 5.0, "gone"),
        ("finished", False, 5.0, "finished"),
        ("failed", True, 5.0, "failed"),
    ],
)
def test_the_verdict(state: str, alive: bool | None, age: float, verdict: str) -> None:
    assert watch.judge({"state": state}, alive, age) == verdict


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b"[]", b"{}", b'{"pid": "x"}', b'{"pid": 1, "step": null}', b"\xff"]
)
def test_a_damaged_heartbeat_is_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heartbeat.json").write_bytes(content)
    assert watch.main([str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"error: \S+/heartbeat\.json: not a heartbeat \(.*\n", told.err)


def test_the_last_lines_of_a_long_and_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert watch.last_lines(path, 3) == []
    lines = [json.dumps({"step": step, "loss": 1.0, "pad": "x" * 90}) for step in range(2000)]
    path.write_text("\n".join(lines) + '\n\0\0\0\n[3]\n{"step": 2000, "lo')
    assert [line["step"] for line in watch.last_lines(path, 3)] == [1997, 1998, 1999]
    assert len(watch.last_lines(path, 10**6)) <= watch.TAIL_BYTES // 100


def test_no_text_of_a_file_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beat = Heartbeat(tmp_path, total=9, first=0)
    beat.doing("failed", "line\nbreak \x1b[2Jand escape")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": "\x1b[2J", "loss": 2.0}) + "\n")
    assert watch.main([str(tmp_path), "--once"]) == 1
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "line break  [2Jand escape" in told.out


def test_watching_a_run_that_is_killed_and_one_that_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-u", "train.py", "--config", str(tmp_path / "small.yaml")]
    folder = tmp_path / "run"
    watched = [str(folder), "--once", "--json", "--lines", "2"]
    options = [f"run.output={folder}"]
    with subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 5/" in line:
                assert watch.main(watched) == 0
                process.kill()
    text, record = capsys.readouterr().out.split("\n{")
    assert "process" in text
    shown = json.loads("{" + record)
    assert (shown["verdict"], shown["alive"], shown["pid"]) == ("running", True, process.pid)
    assert shown["checkpoint"] in ("step_00000002", "step_00000004")
    assert process.returncode == -signal.SIGKILL

    assert watch.main(watched) == 1
    told = capsys.readouterr()
    assert "is gone without a word while training" in told.out
    assert told.err.startswith("error: the run in")
    assert json.loads(told.out.splitlines()[-1])["alive"] is False

    done = subprocess.run([*command, "--resume", *options], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert watch.main(watched) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (shown["verdict"], shown["step"], shown["total"]) == ("finished", 24, 24)
    assert time.time() - shown["time"] < 60
    (window,) = [line for line in shown["last"] if "loss" in line]
    expected = {"gradient_norm", "skipped_steps", "resident_bytes", "seconds/data"}
    assert expected | {"seconds/forward_backward", "seconds/optimizer"} <= window.keys()
    # Checkpoints are written after even steps, and the next line tells how long that took.
    saved = [line["step"] for line in read_metrics(folder) if "seconds/saving" in line]
    assert {7, 23} <= set(saved)
    assert "seconds/evaluating" in shown["last"][-1]
