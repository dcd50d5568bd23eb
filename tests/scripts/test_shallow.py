"""The shallow experiment: photos cut per person, valid configs, settings chosen once all ran."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recognition.parse import load_config
from scripts.experiments import shallow
from scripts.experiments.shallow import SETTINGS, Record, Run, cut, runs_of


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(2, 5), st.integers(0, 99))
def test_people_keep_so_many_photos_or_all_and_those_with_one_go(
    labels: list[int], depth: int, seed: int
) -> None:
    rows = cut(np.array(labels), depth, seed)
    assert len({*rows.tolist()}) == len(rows)
    kept = Counter(labels[row] for row in rows)
    had = Counter(labels)
    assert kept == {label: min(depth, count) for label, count in had.items() if count > 1}


def test_the_seed_draws_the_photos() -> None:
    labels = np.repeat(np.arange(20), 9)
    drawn = [cut(labels, 2, seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("row", SETTINGS)
def test_every_setting_is_a_valid_config_that_shows_as_many_images(row: str) -> None:
    for number, options in enumerate(SETTINGS[row]):
        run = Run("tune", "view1", row, number, 2, 0)
        own = shallow.IMAGES // 2 if shallow.AFTER_FULL in options else shallow.IMAGES
        epochs = shallow.epochs(run, 582, own)
        given = [f"optim.batch_size={shallow.BATCH}", f"optim.epochs={epochs}", *options]
        config = load_config(shallow.CONFIG, given)
        # An epoch of a class pool shows three images for each one of the set.
        shown = epochs * (582 // shallow.BATCH * shallow.BATCH) * (3 if row == "class pool" else 1)
        assert shown == pytest.approx(own, rel=0.02)
        assert config.optim.epochs == epochs


def test_a_setting_after_the_full_classifier_shows_half_of_the_images_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shallow, "training_rows", lambda run, faces: ("train.rec", np.arange(582)))
    started: dict[str, list[str]] = {}
    monkeypatch.setattr(
        shallow,
        "run_training",
        lambda config, options, folder: started.setdefault(folder.name, options),
    )
    setting = next(n for n, options in enumerate(SETTINGS["SST"]) if shallow.AFTER_FULL in options)
    run = Run("test", "train", "SST", setting, 2, 1)
    start, folder = shallow.train(run, tmp_path, tmp_path / "runs")
    assert [*started] == [start.name, folder.name] == ["test_train_start_0_depth2_1", run.name]
    assert f"init.weights={start}" in started[folder.name]
    assert all("optim.epochs=42" in options for options in started.values())
    assert {*shallow.START} <= {*started[start.name]}
    other = shallow.train(replace(run, row="MASST"), tmp_path, tmp_path / "runs")
    assert other[0] == start
    scratch = replace(run, row="full", setting=0)
    assert [path.name for path in shallow.train(scratch, tmp_path, tmp_path / "runs")] == [
        scratch.name
    ]


def _record(run: Run, accuracy: float) -> Record:
    packed = base64.b64encode(np.packbits(np.arange(100) < accuracy).tobytes()).decode()
    return {**vars(run), "accuracy": accuracy, "pairs": 100, "right": packed}


def test_the_best_setting_is_chosen_once_all_of_a_row_were_tried() -> None:
    tuned = [_record(run, 60 + run.setting) for run in runs_of("tune", [])]
    assert len({run.name for run in runs_of("tune", [])}) == len(tuned)
    one_left = tuned[1:]  # the first setting of the full classifier
    rows = {run.row for run in runs_of("test", one_left)}
    assert rows == SETTINGS.keys() - {"full"}
    chosen = {(run.row, run.setting) for run in runs_of("test", tuned)}
    assert chosen == {(row, len(settings) - 1) for row, settings in SETTINGS.items()}
    assert len([*runs_of("test", tuned)]) == 3 * 2 * len(SETTINGS)


def test_the_table_has_differences_to_the_full_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [_record(run, 60 + run.setting) for run in runs_of("tune", [])]
    better = {"full": 60, "class pool": 62, "SST": 70, "MASST": 71}
    records += [_record(run, better[run.row]) for run in runs_of("test", records)]
    for number, record in enumerate(records):
        (tmp_path / f"{number}.json").write_text(json.dumps({**record}))
    shallow.run_experiment(tmp_path / "faces", results=tmp_path, table_only=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(SETTINGS)
    assert "| SST | 3 | 70.00 | +10.00 [" in "\n".join(lines)
