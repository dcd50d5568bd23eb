"""Model folders: what is written is read again, and what is wrong is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recognition.config import Part
from recognition.models.facts import ModelFacts, Normalization, facts_json, parse_facts
from recognition.models.model_folder import read_facts, write_model_folder
from recognition.parse import build_part

FACTS = ModelFacts(
    architecture=Part("iresnet", {"depth": 18, "width": 8, "embedding": 16, "bgr": True}),
    size=32,
    normalization=Normalization(127.5, 128),
    precision="bf16",
)


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = build_part("recognition.backbones", FACTS.architecture, size=32).state_dict()
    write_model_folder(tmp_path / "deep/model", FACTS, state, "# A card\n")
    found = read_facts(tmp_path / "deep/model")
    options = {**found.architecture.options}
    assert options.pop("dropout") == 0.0  # the defaults are written out
    assert options.pop("checkpoint") is False
    assert replace(found, architecture=Part("iresnet", options)) == FACTS
    assert found.color == "bgr"
    loaded = load_file(tmp_path / "deep/model/model.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert (tmp_path / "deep/model/README.md").read_text() == "# A card\n"
    assert len({path.stat().st_mode for path in (tmp_path / "deep/model").iterdir()}) == 1


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        write_model_folder(tmp_path / "model", FACTS, {}, "")
    with pytest.raises(UnicodeEncodeError):
        write_model_folder(tmp_path / "other", FACTS, {"a": torch.zeros(1)}, "\ud800")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version 1"),
        ({"size": "big"}, "size: found 'big'"),
        ({"sizes": 3}, "sizes: unknown key; did you mean size"),
        ({"color": "rgb"}, "color: found 'rgb', but architecture.bgr says bgr"),
        ({"architecture": {"name": "iresnets"}}, "architecture.name: found 'iresnets'"),
        ({"architecture": {"name": "iresnet", "depht": 3}}, "architecture.depht: unknown key"),
        ({"normalization": {"std": 0}}, "normalization.std: found 0"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], problem: str) -> None:
    tree = {**json.loads(facts_json(FACTS)), **change}
    with pytest.raises(ValueError, match=r"^there/model\.json: .*" + problem) as error:
        parse_facts(json.dumps(tree), "there/model.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"version": 1}'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^there: "):
        parse_facts(text, "there")
