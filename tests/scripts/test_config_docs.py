"""The generated page and schema are up to date, and the schema agrees with the parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from recognition.config import Config
from recognition.explain import keys_of, parts_of
from recognition.parse import load_config, to_tree
from scripts import config_docs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
STALE = "stale: run `python -m scripts.config_docs`"


def _errors(tree: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(json.loads(config_docs.SCHEMA.read_text()))
    return [error.message for error in validator.iter_errors(tree)]


def test_both_files_are_fresh() -> None:
    assert config_docs.PAGE.read_text() == config_docs.markdown(), STALE
    assert json.loads(config_docs.SCHEMA.read_text()) == config_docs.schema(), STALE


def test_the_command_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_docs, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(config_docs, "SCHEMA", tmp_path / "schema.json")
    assert config_docs.main([]) == 0
    assert (tmp_path / "page.md").read_text() == config_docs.markdown()
    assert json.loads((tmp_path / "schema.json").read_text()) == config_docs.schema()


def test_the_page_has_every_key_once_per_part() -> None:
    rows = [line for line in config_docs.PAGE.read_text().splitlines() if line.startswith("| `")]
    told = [row.split("`")[1] for row in rows]
    keys = list(keys_of(Config))
    nested = ("data.augment", "init.lora")
    expected = [key.name for key in keys if "." in key.name and key.name not in nested]
    expected += [one.name for key in keys for part in parts_of(key) for one in part.keys]
    assert sorted(told) == sorted(expected)
    assert all(row.count(" | ") == 3 for row in rows)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(config_docs.schema())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_names_the_schema_and_keeps_it(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=schema.json"
    assert _errors(yaml.safe_load(text)) == []
    assert _errors(to_tree(load_config(path))) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lrr", 1),
        ("opttim", {}),
        ("optim.lr", 0),
        ("optim.lr", "fast"),
        ("optim.epochs", 2.5),
        ("optim.epochs", True),
        ("optim.momentum", 1),
        ("optim.name", "adam"),
        ("optim", None),
        ("data.format", "recordoi"),
        ("data.augment.flip", 1.5),
        ("data.augment.flop", 0.5),
        ("head", "arcfase"),
        ("head", {"name": "arcface", "margn": 0.5}),
        ("head", {"margin": 0.5}),
        ("scheduler", {"name": "cosine", "final": 2}),
        ("scheduler", {"name": "multi_step", "milestones": 3}),
        ("scheduler", {"name": "multi_step", "milestones": [-1]}),
        ("evaluate.sets", [{"name": "a", "color": "red"}]),
        ("evaluate.sets", [{"name": "a", "protocol": "pears"}]),
        ("evaluate.sets", [{"bin": "a.bin"}]),
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(key: str, value: Any) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text())
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node[section]
    node[last] = value
    assert _errors(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head", "arcface"),
        ("data.threads", None),
        ("optim.clip_norm", None),
        ("scheduler", {"name": "multi_step", "milestones": [1, 2.5]}),
        ("evaluate.sets", [{"name": "a", "bin": "a.bin"}]),
        ("evaluate.sets", [{"name": "a", "protocol": "tinyface", "root": "faces"}]),
    ],
)
def test_the_schema_admits_what_the_parser_admits(key: str, value: Any) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text())
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node[section]
    node[last] = value
    assert _errors(tree) == []


@pytest.mark.parametrize("section", ["optim", "run", "data"])
def test_the_schema_wants_what_has_no_default(section: str) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text())
    del tree[section]
    assert _errors(tree) == [f"'{section}' is a required property"]
