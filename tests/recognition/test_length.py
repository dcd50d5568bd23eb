"""A finished run that goes on with more epochs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recognition import experiment
from recognition.config import Config, ConfigError
from recognition.logs import read_metrics
from recognition.parse import load_config

SMALL = """
data: {train: "synthetic:identities=4,images=4", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8}
head: {name: arcface, scale: 16}
optim: {lr: 0.05, batch_size: 8, epochs: 2}
scheduler: {name: multi_step, milestones: [1, 2.5], warmup_steps: 1}
run: {output: unused, log_steps: 1, device: cpu}
"""


def _config(folder: Path, output: str, *overrides: str) -> Config:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return load_config(path, [f"run.output={folder / output}", *overrides])


def test_a_lengthened_run_has_the_bits_of_a_long_one(tmp_path: Path) -> None:
    whole = experiment.run(_config(tmp_path, "whole", "optim.epochs=3"), "small.yaml")
    again = experiment.run(_config(tmp_path, "again"), "small.yaml")
    longer = _config(tmp_path, "again", "optim.epochs=3")
    experiment.run(longer, "small.yaml", resume=True)
    assert (again / "model.pt").read_bytes() == (whole / "model.pt").read_bytes()
    steps = [
        [
            (line["step"], line["loss"], line["learning_rate"])
            for line in read_metrics(run)
            if "loss" in line
        ]
        for run in (again, whole)
    ]
    assert steps[0] == steps[1]
    assert [step for step, _, _ in steps[0]] == list(range(1, 7))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            ["scheduler={name: polynomial}"],
            ["scheduler={name: polynomial}", "optim.epochs=3"],
            "optim.epochs=2, now it is 3; the polynomial schedule is planned for the epochs of the "
            "run (others can go on: constant, moving_haar, multi_step); start a new run in another "
            "folder with init.weights=",
        ),
        ([], ["optim.epochs=1"], "now it is 1; resume with the same value; run.max_steps ends a "),
        ([], ["optim.epochs=3", "optim.lr=0.1"], "optim.lr=0.05, now it is 0.1; resume with the "),
    ],
)
def test_what_can_not_be_changed_is_told_with_advice(
    tmp_path: Path, before: list[str], after: list[str], told: str
) -> None:
    experiment.run(_config(tmp_path, "run", *before, "run.max_steps=1"), "small.yaml")
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        experiment.run(_config(tmp_path, "run", *after), "small.yaml", resume=True)
    assert "\n" not in str(caught.value)
