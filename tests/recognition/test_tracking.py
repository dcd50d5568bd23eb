"""Trackers: what they are given, and that a run survives whatever they do."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

import train
from eval.report.pictures import worst_sheet
from eval.report.result import WorstPair
from recognition import tracking
from recognition.config import ConfigError
from recognition.logs import read_metrics
from recognition.parse import load_config
from recognition.trackers import TrackedRun, Tracker, check_trackers, mlflow, tensorboard
from recognition.tracking import Tracking

ROOT = Path(__file__).parents[2]
SMALL = """
data: {train: "synthetic:identities=8,images=6", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 16}
head: {name: arcface}
optim: {lr: 0.05, batch_size: 12, epochs: 2, lr_factors: {centers: 10}}
scheduler: {name: constant}
evaluate:
  every_epochs: 1
  sets: [{name: held, faces: "synthetic:identities=10,images=4,first=900", count: 40}]
run: {device: cpu, log_steps: 1, checkpoint_steps: 2, output: OUTPUT}
"""


def _train(folder: Path, *overrides: str) -> int:
    path = folder / "small.yaml"
    path.write_text(SMALL.replace("OUTPUT", str(folder / "run")))
    return train.main(["--config", str(path), *overrides])


def _png() -> bytes:
    return cv2.imencode(".png", np.full((4, 6, 3), 90, np.uint8))[1].tobytes()


def _decoded(png: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found


class Notes:
    """A tracker that notes its calls, or fails in those that `fail` names."""

    PACKAGES = ()
    EXTRA = "train"

    def __init__(self, fail: tuple[str, ...] = ()) -> None:
        self.fail, self.calls = fail, list[tuple[Any, ...]]()

    def open_tracker(self, run: TrackedRun) -> Tracker:
        self._note("open", run)
        names = ("scalars", "histogram", "picture", "close")
        return Tracker(*(lambda *given, n=name: self._note(n, *given) for name in names))

    def _note(self, name: str, *given: Any) -> None:
        self.calls.append((name, *given))
        if name in self.fail:
            raise ConnectionError(f"no {name}\nfor you")

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


def _use(monkeypatch: pytest.MonkeyPatch, tracker: Any) -> None:
    monkeypatch.setattr(tracking, "find_part", lambda package, name: tracker)


def test_a_tracker_gets_all_figures_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    _use(monkeypatch, notes)
    assert _train(tmp_path) == 0
    names = [name for name, *_ in notes.calls]
    assert (names[0], names[-1]) == ("open", "close")
    ((run,),) = notes.of("open")
    assert (run.folder, run.first_step) == (tmp_path / "run", 0)
    assert run.config["optim.lr"] == 0.05

    lines = read_metrics(tmp_path / "run")
    given = [(step, values) for step, values in notes.of("scalars")]
    assert [step for step, _ in given] == [line["step"] for line in lines]
    for line, (_, values) in zip(lines, given, strict=True):
        assert values == {
            k: v for k, v in line.items() if k not in ("step", "epoch", "trouble") and v == v
        }
    windows = [values for _, values in given if "loss" in values]
    evaluated = [values for _, values in given if "held/accuracy" in values]
    assert len(evaluated) == 2
    assert [values["images"] for values in evaluated] == [48, 96]
    assert windows[0]["learning_rate/backbone"] == pytest.approx(0.05)
    assert windows[0]["learning_rate/classifier"] == pytest.approx(0.5)
    assert all(values["gradient_norm"] > 0 for values in windows)

    histograms = notes.of("histogram")
    assert {name for _, name, _ in histograms} == {"embedding_norms"}
    assert all(values.shape == (12,) and (values > 0).all() for *_, values in histograms)
    pictures = notes.of("picture")
    assert [(step, name) for step, name, _ in pictures] == [(4, "held/worst"), (8, "held/worst")]
    assert _decoded(pictures[0][2]).shape[2] == 3
    assert notes.of("close") == [("finished",)]


def test_a_tracker_that_fails_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = Notes(("scalars", "close"))
    _use(monkeypatch, notes)
    assert _train(tmp_path, "optim.epochs=1", "evaluate.sets=[]") == 0
    told = capsys.readouterr()
    assert told.err == ""
    # The thread may fail too late for a log line to tell it.
    *first, last = (line for line in told.out.splitlines() if "run.trackers" in line)
    text = "tensorboard fails (ConnectionError: no scalars\\x0afor you); the run goes on"
    assert [text in line for line in first] in ([], [True])
    lost = len(notes.of("scalars")) + 1
    assert f"tensorboard did not get {lost} of {lost + len(notes.of('histogram'))} " in last
    assert len(notes.of("scalars")) == len(read_metrics(tmp_path / "run")) == 5


@pytest.mark.parametrize(
    ("fail", "lost"), [((), 0), (("open",), 4), (("picture",), 1), (("close",), 1)]
)
def test_what_did_not_arrive_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: tuple[str, ...], lost: int
) -> None:
    notes, told = Notes(fail), list[str]()
    _use(monkeypatch, notes)
    trackers = Tracking(["x"], TrackedRun(tmp_path, {}, 0), told.append)
    trackers.scalars(1, {"loss": 1.0})
    trackers.picture(1, "p", _png())
    trackers.histogram(1, "h", np.ones(3, np.float32))
    trackers.close("finished")
    assert [f"x did not get {lost} of 4 updates: ConnectionError" in text for text in told] == [
        True
    ] * bool(lost)
    # One that could not be opened is tried again with each call.
    assert len(notes.of("open")) == (3 if fail == ("open",) else 1)


def test_how_a_run_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, end in ((KeyboardInterrupt(), "stopped"), (ValueError("x"), "failed")):
        notes = Notes()
        _use(monkeypatch, notes)
        run = TrackedRun(tmp_path, {}, 0)

        def fail(run: TrackedRun = run, error: BaseException = error) -> None:
            with tracking.tracking(["x"], run, print, (KeyboardInterrupt,)) as trackers:
                trackers.scalars(1, {"loss": 1.0})
                raise error

        with pytest.raises(type(error)):
            fail()
        assert notes.of("close") == [(end,)]


def test_a_tracker_that_hangs_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MOST_WAITING", 5)
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.01)
    told: list[str] = []
    forever = threading.Event()

    def hang(*_: Any) -> None:
        forever.wait()

    hanging = Tracker(hang, hang, hang, hang)
    _use(monkeypatch, SimpleNamespace(open_tracker=lambda run: hanging))
    trackers = Tracking(["slow"], TrackedRun(tmp_path, {}, 0), told.append)
    for step in range(20):
        trackers.scalars(step, {"loss": 1.0})
    trackers.close("finished")
    forever.set()
    assert len(told) == 2
    assert "slow fails (it is too slow: 5 updates wait for it)" in told[0]
    assert "slow did not get 21 of 21 updates" in told[1]


def test_figures_that_are_not_finite_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    _use(monkeypatch, notes)
    trackers = Tracking(["x"], TrackedRun(tmp_path, {}, 0), print)
    trackers.scalars(1, {"epoch": 1.0, "loss": 2.0, "trouble": ["x"], "none": None})
    trackers.histogram(1, "h", np.array([np.nan, 3.0, np.inf], np.float32))
    trackers.histogram(1, "h", np.array([np.nan], np.float32))
    trackers.close("finished")
    assert notes.of("scalars") == [(1, {"loss": 2.0})]
    ((_, _, values),) = notes.of("histogram")
    assert values.tolist() == [3.0]


def test_what_is_not_installed_is_told_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow, "PACKAGES", ("mlflow_of_tomorrow",))
    assert _train(tmp_path, "run.trackers=[mlflow]") == 2
    path = tmp_path / "small.yaml"
    assert capsys.readouterr().err == (
        f"error: {path}: run.trackers: mlflow needs mlflow_of_tomorrow: "
        "pip install -e '.[mlflow]'\n"
    )
    assert not (tmp_path / "run").exists()
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"run\.trackers: found .*tensorbord"):
        load_config(path, ["run.trackers=[tensorbord]"])


def _events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"images": 0, "histograms": 0, "scalars": 0})
    return found.Reload()


def test_tensorboard_shows_figures_over_steps_and_images(tmp_path: Path) -> None:
    hook = threading.excepthook
    tracker = tensorboard.open_tracker(TrackedRun(tmp_path, {}, 0))
    for step in (1, 2):
        tracker.scalars(step, {"loss": 3.0 / step, "images": 12 * step, "data_wait": 0.0})
    tracker.histogram(2, "embedding_norms", np.array([1.0, 2.0], np.float32))
    tracker.picture(2, "held/worst", _png())
    tracker.close("finished")
    assert threading.excepthook is hook
    events = _events(tmp_path / "tensorboard")
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(1, 3.0), (2, 1.5)]
    assert [one.step for one in events.Scalars("over_images/loss")] == [12, 24]
    assert "over_images/data_wait" not in events.Tags()["scalars"]
    (image,) = events.Images("held/worst")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    assert image.encoded_image_string == _png()
    (histogram,) = events.Histograms("embedding_norms")
    assert histogram.histogram_value.num == 2

    # A resume from step 1 replaces step 2.
    again = tensorboard.open_tracker(TrackedRun(tmp_path, {}, 1))
    again.scalars(2, {"loss": 9.0})
    again.close("finished")
    events = _events(tmp_path / "tensorboard")
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(1, 3.0), (2, 9.0)]


def test_the_worst_pairs_become_a_picture() -> None:
    faces = [cv2.imencode(".png", np.full((50, 50, 3), shade, np.uint8))[1] for shade in (10, 200)]
    dark, light = (face.tobytes() for face in faces)
    pairs = [WorstPair((dark, light), ("a", "b"), 0.1, same=True)]
    pairs += [WorstPair((light, b"no image"), ("a", "b"), 0.9, same=False)]
    sheet = _decoded(worst_sheet(pairs))
    assert sheet.shape == (118, 4 * 200, 3)
    # Two people come first: a light face, and gray in place of one that can't be decoded.
    assert [int(sheet[40, x].mean()) for x in (40, 140, 240, 340)] == [200, 128, 10, 200]


@pytest.fixture
def local_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in mlflow.PACKAGES:
        pytest.importorskip(package, reason="the extra mlflow is not installed")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def _only_run(uri: str) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("fastface")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def _check_run(client: Any, run: Any, folder: Path) -> None:
    """The whole of the run in `folder` is in MLflow."""
    assert run.info.status == "FINISHED"
    assert run.info.run_name == folder.name
    assert run.data.params["optim.lr"] == "0.05"
    lines = read_metrics(folder)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    kept = client.get_metric_history(run.info.run_id, "loss")
    assert {one.step: one.value for one in kept} == pytest.approx(losses)
    (accuracy,) = {
        one.value for one in client.get_metric_history(run.info.run_id, "held/accuracy")
        if one.step == lines[-1]["step"]
    }  # fmt: skip
    assert accuracy == pytest.approx(lines[-1]["held/accuracy"])
    assert run.data.metrics["images"] == 96
    names = {item.path for item in client.list_artifacts(run.info.run_id, "pictures/held/worst")}
    assert "pictures/held/worst/step_00000008.png" in names
    assert client.list_artifacts(run.info.run_id, "pictures/embedding_norms")


@pytest.mark.usefixtures("local_mlflow")
def test_mlflow_keeps_a_run_in_a_local_store_and_a_resume_continues_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("run.trackers=[tensorboard, mlflow]",)
    assert _train(tmp_path, *options, "run.max_steps=4") == 0
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    _, begun = _only_run(uri)
    assert _train(tmp_path, *options, "--resume") == 0
    client, run = _only_run(uri)
    assert run.info.run_id == begun.info.run_id
    _check_run(client, run, tmp_path / "run")
    assert "run.trackers" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "small.yaml") == [
        "mlflow.db",
        "mlflow_files",
        "run",
    ]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_mlflow: None) -> Iterator[str]:
    """A real MLflow server; a test that ends may end it."""
    for package in ("mlflow.server", "flask", "gunicorn"):
        pytest.importorskip(package, reason="a server needs the whole of mlflow")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    store = f"sqlite:///{tmp_path / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--artifacts-destination", str(tmp_path / "files"), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            yield uri
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the server did not start within a minute")


def test_mlflow_keeps_a_run_on_a_server(tmp_path: Path, server: str) -> None:
    assert _train(tmp_path, "run.trackers=[mlflow]") == 0
    client, run = _only_run(server)
    _check_run(client, run, tmp_path / "run")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.usefixtures("local_mlflow")
def test_a_server_that_is_gone_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert _train(tmp_path, "run.trackers=[mlflow]") == 0
    told = capsys.readouterr()
    about = [line for line in told.out.splitlines() if "run.trackers" in line]
    assert "mlflow did not get" in about[-1]
    assert "127.0.0.1" in about[-1]
    assert len(about) <= 2
    assert told.err == ""
