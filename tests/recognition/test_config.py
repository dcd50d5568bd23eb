"""Every mistake in a config is one line that names the key; a printed config can be loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recognition.config import ConfigError
from recognition.parse import load_config, parse_config, to_tree, to_yaml

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
        ("optim.lrr=1", ["optim.lrr", "unknown key", "did you mean lr or lr_factors"]),
        ("optim.lr=fast", ["optim.lr", "a number", "'fast'"]),
        ("optim.lr=-1", ["optim.lr", "-1"]),
        ("optim.epochs=2.5", ["optim.epochs", "whole number", "2.5"]),
        ("optim.epochs=true", ["optim.epochs", "whole number", "True"]),
        ("optim.lr=.inf", ["optim.lr", "inf", "more than 0"]),
        ("optim.lr=.nan", ["optim.lr", "nan", "more than 0"]),
        ("optim.lr=0", ["optim.lr", "found 0, expected a number more than 0"]),
        ("optim.epochs=0", ["optim.epochs", "found 0", "at least 1"]),
        ("optim.momentum=1", ["optim.momentum", "found 1", "less than 1"]),
        ("optim.momentum=0 optim.nesterov=true", ["optim.nesterov", "True", "optim.momentum"]),
        ("optim.nam=adam", ["optim.nam", "did you mean name"]),
        ("optim.name=adam", ["optim.name", "'adam'", "did you mean adamw"]),
        ("data.size=8", ["data.size", "found 8", "at least 16"]),
        ("data.threads=0", ["data.threads", "found 0", "at least 1 or null"]),
        ("data.format=recordoi", ["data.format", "'recordoi'", "did you mean recordio"]),
        ("data.augment.shift=-1", ["data.augment.shift", "found -1", "at least 0"]),
        ("run.seed=-1", ["run.seed", "found -1", "at least 0"]),
        ("run.keep=0", ["run.keep", "found 0", "at least 1"]),
        ("run.output=", ["run.output", "found", "a path"]),
        ("evaluate.every_epochs=-1", ["evaluate.every_epochs", "found -1", "at least 0"]),
        ("evaluate.sets=[{bin: a.bin}]", ["evaluate.sets[0].name", "missing"]),
        ("evaluate.sets=[{name: '', bin: a.bin}]", ["evaluate.sets", "['']", "name"]),
        ("evaluate.sets=7", ["evaluate.sets", "7", "a list"]),
        (
            "evaluate.sets=[{name: a, bin: a.bin}, {name: a, bin: b.bin}]",
            ["evaluate.sets", "['a', 'a']", "different name"],
        ),
        ("scheduler=cosine scheduler.final=1.5", ["scheduler.final", "found 1.5", "at most 1"]),
        ("scheduler=cosine scheduler.warmup_steps=-1", ["scheduler.warmup_steps", "found -1"]),
        ("scheduler.patience_fraction=2", ["scheduler.patience_fraction", "found 2"]),
        ("scheduler.factor=1", ["scheduler.factor", "found 1", "less than 1"]),
        (
            "scheduler={name: multi_step, milestones: [3, 1]}",
            ["scheduler.milestones", "[3, 1]", "ascending"],
        ),
        ("scheduler={name: multi_step, milestones: 3}", ["scheduler.milestones", "3", "a list"]),
        ("classifier={name: full, name: partial}", ["classifier", "name", "written twice"]),
        ("optim.clip_norm=0", ["optim.clip_norm", "0", "more than 0 or null"]),
        ("optim.batch_size=1", ["optim.batch_size", "at least 2"]),
        ("head.name=arcfase", ["head", "arcface"]),
        ("head.margn=0.4", ["head.margn", "margin"]),
        ("backbone=3", ["backbone", "3"]),
        ("backbone=null backbone.depth=18", ["backbone: found {'depth': 18}, expected {name"]),
        ("backbone.size=112", ["backbone.size", "unknown key of iresnet"]),
        ("scheduler.name=cosin", ["scheduler", "cosine"]),
        ("run.precision=fp8", ["run.precision", "fp8"]),
        ("run.device=gpu", ["run.device", "gpu"]),
        (
            "run.compile=true run.compile_mode=max-autotune-no-cudagraphs run.deterministic=true",
            ["run.compile_mode", "run.deterministic", "use default"],
        ),
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
        ("optim.lr=[", ["optim.lr", "YAML"]),
        ("evaluate.sets=[{name: a, color: red}]", ["evaluate.sets[0].color"]),
        ("evaluate.sets=[{name: a, protocol: pears}]", ["evaluate.sets[0]", "pairs"]),
        ("data.augment.flop=1", ["data.augment.flop", "flip"]),
        ("data.augment.flip=2", ["data.augment.flip", "2", "at most 1"]),
    ],
)
def test_a_mistake_names_its_key(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, re.split(r" (?=[a-z_.]+=)", override))
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


@pytest.mark.parametrize(
    "text",
    ["set #2", "007", "yes", "null", "1e3", "2024-01-31", "2024-13-45", "a: b", "{a: b}", "'a'"],
)
def test_text_is_kept_as_typed(text: str) -> None:
    config = load_config(QUICKSTART, [f"data.train={text}", f"run.output={text}"])
    assert (config.data.train, config.run.output) == (text, text)


def test_null_is_nothing_only_where_a_key_allows_it() -> None:
    overrides = ["data.root=null", "optim.clip_norm=null", "run.output=null"]
    config = load_config(QUICKSTART, overrides)
    assert config.data.root is None
    assert config.optim.clip_norm is None
    assert config.run.output == "null"
    assert load_config(QUICKSTART, ["optim.clip_norm=~"]).optim.clip_norm is None


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    overrides = [
        "data.root=~",
        "data.train=concat:~/a;~/b;c/~d",
        "run.output=~/runs/x~",
        "evaluate.sets=[{name: lfw, pairs: ~/pairs.txt, images: ~me/a}]",
    ]
    config = load_config(QUICKSTART, overrides)
    assert config.data.root == "/home/me"
    assert config.data.train == "concat:/home/me/a;/home/me/b;c/~d"
    assert config.run.output == "/home/me/runs/x~"
    assert config.evaluate.sets[0]["pairs"] == "/home/me/pairs.txt"
    assert config.evaluate.sets[0]["images"] == "~me/a"


def test_overrides_reach_into_factors() -> None:
    config = load_config(QUICKSTART, ["optim.lr_factors.centers=1e1"])
    assert config.optim.lr_factors == {"centers": 10}
    config = load_config(QUICKSTART, ["optim.lr_factors={'*.bias': 2, fc.weight: 0.5}"])
    assert config.optim.lr_factors == {"*.bias": 2, "fc.weight": 0.5}


def test_overrides_reach_into_parts_and_lists() -> None:
    overrides = [
        "head=arcface",
        "head.margin=0.3",
        "classifier={name: partial}",
        "classifier.sample_rate=0.5",
        "data.augment.flip=0",
        "scheduler={name: multi_step, milestones: [1, 2.5]}",
        "evaluate.sets=[{name: a, bin: 'set #2.bin'}]",
    ]
    config = load_config(QUICKSTART, overrides)
    assert (config.head.name, config.head.options["margin"]) == ("arcface", 0.3)
    assert config.classifier.options["sample_rate"] == 0.5
    assert config.data.augment.flip == 0
    assert config.scheduler.options["milestones"] == (1, 2.5)
    assert [one["bin"] for one in config.evaluate.sets] == ["set #2.bin"]


@pytest.mark.parametrize(
    ("written", "line"),
    [("optim: {lr: 1, lr: 2}\n", 1), ("a: 1\nb:\n  c: 1\n  d: 1\n  c: 2\n", 5), ("a: 1\na: 1", 2)],
)
def test_a_key_written_twice_is_refused(tmp_path: Path, written: str, line: int) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(written)
    with pytest.raises(ConfigError, match=rf"twice\.yaml.* is written twice.*line {line}"):
        load_config(path)


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
