"""Every mistake in a config is one line that names the key; a resolved config reads back as
itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recognition.config import ConfigError, load_config, parse_config, to_tree, to_yaml

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_is_valid_and_survives_a_round_trip(path: Path) -> None:
    config = load_config(path)
    assert parse_config(yaml.safe_load(to_yaml(config)), "again") == config


def test_quickstart_has_the_sections_people_look_for() -> None:
    tree = yaml.safe_load(QUICKSTART.read_text())
    assert {"data", "backbone", "head", "classifier", "optim", "scheduler", "evaluate"} <= set(tree)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lrr=1", ["optim.lrr", "unknown key", "did you mean lr?"]),
        ("optim.lr=fast", ["optim.lr", "a number", "'fast'"]),
        ("optim.lr=-1", ["optim.lr", "-1"]),
        ("optim.epochs=2.5", ["optim.epochs", "whole number", "2.5"]),
        ("optim.epochs=true", ["optim.epochs", "whole number", "True"]),
        ("optim.clip_norm=0", ["optim.clip_norm", "positive"]),
        ("optim.batch_size=1", ["optim.batch_size", "at least 2"]),
        ("head.name=arcfase", ["head", "arcface"]),
        ("head.margn=0.4", ["head.margn", "margin"]),
        ("backbone=3", ["backbone", "3"]),
        ("backbone.size=112", ["backbone.size", "no such option"]),
        ("scheduler.name=cosin", ["scheduler", "cosine"]),
        ("run.precision=fp8", ["run.precision", "fp8"]),
        ("run.device=gpu", ["run.device", "gpu"]),
        ("optim=7", ["optim", "7"]),
        ("opttim.lr=1", ["opttim", "did you mean optim?"]),
        ("optim.lr.x=1", ["optim.lr"]),
        (
            "classifier={name: full, fused: true} optim.nesterov=true",
            ["optim.name", "nesterov", "full classifier"],
        ),
        (
            "classifier={name: full, fused: true} optim.name=adamw",
            ["optim.name", "adamw", "full classifier"],
        ),
        (
            "classifier=partial optim.nesterov=true",
            ["optim.name", "nesterov", "partial classifier"],
        ),
        ("optim.lr", ["section.key=value"]),
        ("optim.lr=[", ["YAML"]),
        ("evaluate.sets=[{name: a, color: red}]", ["evaluate.sets[0].color"]),
        ("evaluate.sets=[{name: a, protocol: pears}]", ["evaluate.sets[0]", "pairs"]),
        ("data.augment.flop=1", ["data.augment.flop", "flip"]),
        ("data.augment.flip=2", ["data.augment"]),
    ],
)
def test_a_mistake_names_its_key(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, re.split(r" (?=[a-z]+\.)", override))
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_missing_section_and_missing_file(tmp_path: Path) -> None:
    tree = to_tree(load_config(QUICKSTART))
    del tree["optim"]["lr"]
    with pytest.raises(ConfigError, match=r"here.yaml: optim\.lr: missing"):
        parse_config(tree, "here.yaml")
    with pytest.raises(ConfigError, match=r"quickstart\.yaml"):
        load_config(QUICKSTART.with_name("quikstart.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("optim: [1,\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load_config(broken)
    broken.write_text("- just\n- a list\n")
    with pytest.raises(ConfigError, match="sections"):
        load_config(broken)


def test_exponents_without_a_dot_are_numbers() -> None:
    assert load_config(QUICKSTART, ["optim.lr=1e-3"]).optim.lr == 0.001


def test_the_command_exits_2_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--config", "configs/quickstart.yaml"]
    done = subprocess.run([*command, "optim.lrr=1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "optim.lrr" in done.stderr
    shown = subprocess.run(
        [*command, "--print-config", "optim.lr=0.25"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["optim"]["lr"] == 0.25
