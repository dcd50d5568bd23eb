"""MLflow: a server, or a local store that all runs of a folder share.

MLFLOW_TRACKING_URI names a server or a store, and MLFLOW_EXPERIMENT_NAME an experiment, as in every
program that uses MLflow. Without them it is `mlflow.db` (SQLite) and `mlflow_files/` beside the run
folder, experiment `fastface`:

    mlflow ui --backend-store-uri sqlite:///runs/mlflow.db

`mlflow.json` in the run folder holds the number of the MLflow run, which a resume continues. Axes
are steps; `images`, which is among the metrics, can be chosen instead.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.files import atomic_write
from recognition.trackers import End, TrackedRun, Tracker

PACKAGES = ("mlflow", "sqlalchemy", "alembic")
EXTRA = "mlflow"
EXPERIMENT = "fastface"
ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
LONGEST_NAME = 250  # of a metric
LONGEST_PARAM = 6000
PARAMS_AT_ONCE = 100


def open_tracker(run: TrackedRun) -> Tracker:
    """The MLflow run of a run folder: that of its earlier starts, or a new one."""
    # Without this MLflow tells its makers how it is used.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    home = run.folder.absolute().parent
    client = MlflowClient(tracking_uri=given or f"sqlite:///{home / 'mlflow.db'}")
    run_id = _known_run(client, run.folder / "mlflow.json")
    if run_id is None:
        files = None if given else (home / "mlflow_files").as_uri()
        run_id = _new_run(client, run, _experiment(client, files))
    number: str = run_id

    def scalars(step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        metrics = [Metric(key(name), float(value), now, step) for name, value in values.items()]
        client.log_batch(number, metrics=metrics)

    def histogram(step: int, name: str, values: np.ndarray) -> None:
        picture(step, name, drawn(values))

    def picture(step: int, name: str, png: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"step_{step:08d}.png"
            path.write_bytes(png)
            client.log_artifact(number, str(path), artifact_path=f"pictures/{key(name)}")

    def close(end: End) -> None:
        client.set_terminated(number, ENDS[end])

    return Tracker(scalars, histogram, picture, close)


def _known_run(client: Any, file: Path) -> str | None:
    """The run that an earlier start made, set to running again; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        run_id = str(json.loads(file.read_bytes())["run_id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None  # another store
    if found.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


def _experiment(client: Any, files: str | None) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name, files))


def _new_run(client: Any, run: TrackedRun, experiment: str) -> str:
    from mlflow.entities import Param

    run_id = str(client.create_run(experiment, run_name=run.folder.absolute().name).info.run_id)
    with atomic_write(run.folder / "mlflow.json", "w") as file:
        json.dump({"run_id": run_id}, file)
    values = [Param(key(name), str(value)[:LONGEST_PARAM]) for name, value in run.config.items()]
    for first in range(0, len(values), PARAMS_AT_ONCE):
        client.log_batch(run_id, params=values[first : first + PARAMS_AT_ONCE])
    return run_id


def key(name: str) -> str:
    """A name with the characters that MLflow allows, which also makes it a relative path."""
    kept = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    parts = [part.strip(" .") or "_" for part in kept.split("/")]
    return "/".join(parts)[:LONGEST_NAME]


def drawn(values: np.ndarray) -> bytes:
    """A histogram as a PNG, because MLflow has no histograms."""
    counts, edges = np.histogram(values, 40)
    canvas = np.full((240, 480, 3), 255, np.uint8)
    for place, count in enumerate(counts):
        height = round(200 * count / max(counts.max(), 1))
        left = 20 + 11 * place
        cv2.rectangle(canvas, (left, 210 - height), (left + 9, 210), (160, 90, 30), cv2.FILLED)
    for left, edge in ((20, edges[0]), (400, edges[-1])):
        text, font = f"{edge:.4g}", cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(canvas, text, (left, 230), font, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return cv2.imencode(".png", canvas)[1].tobytes()
