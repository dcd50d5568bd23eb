"""The folder of a run: one run at a time, its config mended, its room checked, its lines read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import cv2
import pytest
import torch
import yaml

import recognition
from data.faces import open_faces
from recognition import best_checkpoint, checkpoint, experiment, run_folder, run_lock, run_space
from recognition.best_checkpoint import MARK
from recognition.config import Config, ConfigError
from recognition.distributed import Ranks
from recognition.logs import Metrics, plot_training, read_metrics
from recognition.parse import load_config, to_yaml
from recognition.run_folder import check_run_folder, open_run_folder, revision
from recognition.run_space import Sizes

ROOT = Path(__file__).parents[2]
TINY = """
data: {train: "synthetic:identities=4,images=4", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8}
head: {name: arcface}
optim: {lr: 0.05, batch_size: 8, epochs: 2}
scheduler: {name: constant}
run: {output: OUTPUT, log_steps: 1, device: cpu, keep: 3, checkpoint_steps: 1}
"""


def _config(folder: Path, *overrides: str) -> Config:
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("OUTPUT", str(folder / "run")))
    return load_config(path, overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    return experiment.run(_config(folder), "tiny.yaml")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The folder of a run of 4 steps whose last checkpoint is gone, as after a crash."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000004")
    return tmp_path / "run"


def _resume(run: Path, *overrides: str) -> None:
    experiment.run(_config(run.parent, *overrides), "tiny.yaml", resume=True)


def _model(folder: Path) -> bytes:
    return (folder / "model.pt").read_bytes()


def test_model_pt_of_another_step_is_repaired_on_resume(finished: Path, run: Path) -> None:
    """Here the crash came between model.pt and the checkpoint that belongs to it."""
    shutil.copytree(finished / "checkpoints", run / "checkpoints", dirs_exist_ok=True)
    for wrong in (_model(run / "checkpoints/step_00000002"), b"half of it", None):
        (run / "model.pt").write_bytes(wrong) if wrong else (run / "model.pt").unlink()
        _resume(run)
        assert _model(run) == _model(finished)
        assert _model(run) == _model(checkpoint.newest(run / "checkpoints") or run)


def test_a_damaged_checkpoint_costs_its_steps_only(
    finished: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints/step_00000003/shared.pt").write_bytes(b"")
    _resume(run)
    told = capsys.readouterr().out
    assert "step_00000003/shared.pt" in told
    assert f"resume from {run}/checkpoints/step_00000002" in told
    assert _model(run) == _model(finished)
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == [*(f"step_0000000{n}" for n in (2, 3)), "step_00000003.damaged", "step_00000004"]


def test_checkpoints_that_are_all_damaged_or_gone_do_not_start_again(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes()
    for path in checkpoint.checkpoints(run / "checkpoints"):
        (path / "shared.pt").unlink()
    with pytest.raises(ConfigError, match="no checkpoint is whole"):
        _resume(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match=r"holds model\.pt, but no checkpoint to resume from"):
        _resume(run)
    assert (run / "metrics.jsonl").read_bytes() == lines


def test_a_run_without_a_checkpoint_says_that_it_starts_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "model.pt").unlink()
    _resume(run)
    assert "has no checkpoint yet: the run starts from step 0" in capsys.readouterr().out


def test_another_training_set_does_not_fit_the_checkpoint(run: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.train: .*_00000003 .*16 images and has 20; .*4 id.* 5"
    ):
        _resume(run, "data.train=synthetic:identities=5,images=4")


def _faces(folder: Path) -> Path:
    """Four people with four images each, in folders."""
    faces = open_faces("synthetic:identities=4,images=4,size=32")
    for index in range(len(faces)):
        path = folder / f"person_{faces.labels[index]}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(faces.read(index))
    return folder


def test_a_moved_set_goes_on_and_a_renamed_person_is_refused(tmp_path: Path) -> None:
    here, there = _faces(tmp_path / "here"), tmp_path / "there"
    experiment.run(_config(tmp_path, f"data.train={here}"), "tiny.yaml")
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000004")
    here.rename(there)
    (there / "person_1").rename(there / "person_9")
    told = r"not the set that .*_00000003 .*: identity 1 \(person_2\) is not the same, and so are 2"
    with pytest.raises(ConfigError, match=told):
        _resume(tmp_path / "run", f"data.train={there}")
    (there / "person_9").rename(there / "person_1")
    _resume(tmp_path / "run", f"data.train={there}")
    assert read_metrics(tmp_path / "run")[-1]["step"] == 4


def test_a_checkpoint_without_a_fingerprint_goes_on_and_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = checkpoint.load_newest

    def older(folder: Path, ranks: Ranks, device: torch.device) -> checkpoint.Loaded | None:
        found = original(folder, ranks, device)
        assert found is not None
        del found.shared["faces"]
        return found

    monkeypatch.setattr(checkpoint, "load_newest", older)
    _resume(run)
    assert "step_00000003 has no fingerprint of its training set" in capsys.readouterr().out


@pytest.mark.parametrize("written", [b"", b"run: [", b"\xff", None])
def test_a_broken_config_yaml_is_mended(finished: Path, run: Path, written: bytes | None) -> None:
    (run / "config.yaml").unlink()
    if written is not None:
        (run / "config.yaml").write_bytes(written)
        with pytest.raises(ValueError, match=r"config\.yaml: empty or damaged"):
            recognition.load(run, device="cpu")
    with pytest.raises(ConfigError, match="holds a run already"):
        experiment.run(_config(run.parent), "tiny.yaml")
    with pytest.raises(ConfigError, match=r"step_00000003/config\.yaml was made with optim\.lr"):
        _resume(run, "optim.lr=0.01")
    _resume(run)
    mended = (run / "config.yaml").read_text()
    assert mended == (finished / "config.yaml").read_text().replace(str(finished), str(run))


def test_a_run_from_before_a_new_key_goes_on_with_its_default(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    monkeypatch.setattr(
        run_folder, "saved_config", lambda folder: (run / "config.yaml", yaml.safe_dump(tree))
    )
    del tree["teacher"], tree["optim"]["muon_lr"]
    with pytest.raises(ConfigError, match=r"optim\.muon_lr=None, now it is 0\.5"):
        _resume(run, "optim.muon_lr=0.5")
    _resume(run)

    del tree["classifier"]["chunk"]
    with pytest.raises(ConfigError, match=r"classifier\.chunk=None"):
        _resume(run)


def test_a_start_that_failed_before_training_can_be_repeated(tmp_path: Path) -> None:
    """It left config.yaml behind, and may have been given other options."""
    started = _config(tmp_path, "optim.lr=0.2")
    with open_run_folder(started, False, Sizes(0, 0), {}):
        pass
    folder = Path(started.run.output)
    assert (folder / "config.yaml").exists()
    assert json.loads((folder / "environment.json").read_text())["python"]
    with open_run_folder(_config(tmp_path), False, Sizes(0, 0), {}):
        pass
    (folder / "model.pt").touch()
    with pytest.raises(ConfigError, match="holds a run already"):
        check_run_folder(_config(tmp_path), False)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_plot_of_a_short_run_shows_its_points(tmp_path: Path, steps: int) -> None:
    lines = [{"step": step, "loss": 4.0 - step, "learning_rate": 0.1} for step in range(steps)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    image = cv2.imread(str(plot_training(tmp_path)))
    assert image is not None
    blue = (image[..., 0].astype(int) - image[..., 2] > 100).sum((0, 1))
    assert blue > 40 * steps


def test_a_machine_without_git_has_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision() is None


def test_a_checkpoint_is_a_model_too(run: Path) -> None:
    path = run / "checkpoints/step_00000002"
    model = recognition.load(path, device="cpu")
    weights = checkpoint.load_tensors(path / "model.pt")
    assert all(torch.equal(weights[k], v) for k, v in model.network.state_dict().items())


def test_metrics_with_damage_are_read_without_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "metrics.jsonl"
    whole = path.read_bytes().splitlines()
    harm = [
        *(
            b"\0" * 40,
            b'{"step": 1, "los',
            b"\xff\xfe",
            b"[1]",
            b"3",
            b'{"step": "2"}',
            b"[" * 9999,
        ),
        b'{"step": true}',
    ]
    path.write_bytes(b"\n".join([harm[0], whole[0], *harm[1:], *whole[1:], b'{"step": 4, "lo']))
    assert read_metrics(run) == [json.loads(line) for line in whole]
    path.write_bytes(path.read_bytes() + b'\n{"step": 4, "loss": "x", "learning_rate": null}\n')
    plot_training(run)
    Metrics(run, 3).close()
    assert f"{path}: {len(harm) + 1} damaged lines were removed" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 2, 3]


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")


@FULL
def test_a_full_disk_under_the_metrics_names_the_file(run: Path) -> None:
    metrics = Metrics(run, 3)
    metrics._file = open("/dev/full", "w")  # noqa: SIM115  close() closes it
    with pytest.raises(OSError, match=r"No space left") as full:
        metrics.write(4, {"loss": 1.0})
    assert full.value.filename == str(run / "metrics.jsonl")


@FULL
def test_the_cause_is_told_and_not_what_follows_from_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full when the file is closed as well."""

    def fail() -> None:
        with Metrics(run, 3) as metrics:
            metrics._file = open("/dev/full", "w")  # noqa: SIM115  close() closes it
            metrics._file.write("x")
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        fail()
    assert capsys.readouterr().err == ""


HOLD = """
import sys, time
from pathlib import Path
from recognition.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_folder_is_refused_until_kill_9_of_the_first(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes()
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        told = f"is in use by process {holder.pid} on {socket.gethostname()}"
        with pytest.raises(ConfigError, match=told):
            _resume(run)
        with pytest.raises(ConfigError, match=told):
            experiment.run(_config(run.parent), "tiny.yaml")
        assert (run / "metrics.jsonl").read_bytes() == lines
        (run / "lock").write_text("\0garbage")
        with pytest.raises(ConfigError, match="is in use by another process"):
            _resume(run)
        holder.send_signal(signal.SIGKILL)
    _resume(run)
    _resume(run)  # A run that has ended holds no lock, also in this process.


def test_a_drive_without_locks_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_lock.run_lock(run):
        assert "has no locks; start no second run in it" in capsys.readouterr().out


def test_room_for_the_checkpoints_is_checked_before_the_run(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    one = sum(path.stat().st_size for path in finished.glob("checkpoints/step_00000004/*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * one))
    with pytest.raises(ConfigError, match=r"bytes more for 4 checkpoints, .* free; .*run\.keep"):
        experiment.run(_config(tmp_path), "tiny.yaml")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(6 * one))
    experiment.run(_config(tmp_path, "optim.epochs=1"), "tiny.yaml")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_size_of_a_checkpoint_is_known_before(tmp_path: Path, optimizer: str) -> None:
    config = _config(tmp_path, f"optim.name={optimizer}", "backbone.width=16")
    parts = experiment.build_parts(
        config, experiment._open_training_faces(config), torch.device("cpu"), Ranks()
    )
    estimated = run_space.sizes_of(parts)
    folder = experiment.run(config, "tiny.yaml")
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    written = sum(file.stat().st_size for file in newest.iterdir())
    assert estimated.checkpoint == pytest.approx(written, rel=0.05)
    model = (folder / "model.pt").stat().st_size
    assert estimated.model == pytest.approx(model, rel=0.05)


def test_a_read_only_folder_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open

    def refuse(path: object, mode: str = "r") -> object:
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode)  # type: ignore[call-overload]

    for module in ("data.files", "recognition.run_lock"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.open", refuse, raising=False)
            with pytest.raises(ConfigError, match=r"can't be written \(Read-only file system\)"):
                _resume(run)


SET = "evaluate.sets=[{name: h, faces: 'synthetic:identities=9,images=4,first=99', count: 40}]"


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("h/acuracy", "h/accuracy"),
        ("lfw/accuracy", "h/accuracy"),
        ("h/threshold", "h/"),
        ("accuracy", "h/accuracy"),
    ],
)
def test_a_figure_that_no_set_has_is_refused(tmp_path: Path, metric: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.keep_best: found '{metric}'.*{told}"):
        experiment.run(_config(tmp_path, SET, f"run.keep_best={metric}"), "tiny.yaml")
    with pytest.raises(ConfigError, match=r"evaluate\.sets is empty"):
        experiment.run(_config(tmp_path, f"run.keep_best={metric}"), "tiny.yaml")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("metric", "best"), [("h/accuracy", 3), ("h/eer", 1)])
def test_the_best_checkpoint_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, best: int
) -> None:
    config = _config(tmp_path, SET, f"run.keep_best={metric}", "run.keep=1")
    folder, ranks = tmp_path / "run", Ranks()
    folder.mkdir()
    marked = []
    for step, value in enumerate([50.0, 60.0, 80.0, 70.0, 55.0, float("nan")], 1):
        checkpoint.save(
            folder / "checkpoints",
            step,
            {"backbone": {}},
            {},
            ranks,
            config=to_yaml(config),
            device=torch.device("cpu"),
            keep=1,
            spare=best_checkpoint.best_checkpoint(config, folder),
        )
        best_checkpoint.mark_best(config, folder, {metric: value}, ranks)
        marked = [path.parent.name for path in folder.glob(f"checkpoints/*/{MARK}")]
        assert len(marked) == 1
    assert marked == [f"step_0000000{best}"]
    names = [path.name for path in checkpoint.checkpoints(folder / "checkpoints")]
    assert names == [f"step_0000000{best}", "step_00000006"]
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"run.keep_best: this evaluation has no figure {metric}"
    assert told[-2].startswith(f"best {metric} so far: ")

    (folder / "checkpoints" / marked[0] / MARK).write_bytes(b"\0\0")
    assert best_checkpoint.best_checkpoint(config, folder) is None
    assert "not readable" in capsys.readouterr().out


def test_a_run_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    config = _config(tmp_path, SET, "run.keep_best=h/accuracy", "run.keep=1", "optim.epochs=3")
    folder = experiment.run(config, "tiny.yaml")
    values = {
        line["step"]: line["h/accuracy"] for line in read_metrics(folder) if "h/accuracy" in line
    }
    (mark,) = folder.glob(f"checkpoints/*/{MARK}")
    assert json.loads(mark.read_text())["value"] == max(values.values())
    assert values[int(mark.parent.name[5:])] == max(values.values())
    assert yaml.safe_load((mark.parent / "config.yaml").read_text())["run"]["keep"] == 1
