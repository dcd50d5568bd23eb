"""Every key can be found on the command line, with a text, a type and a default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import train
from data.parts import part_names
from recognition.config import Config
from recognition.explain import Key, keys_of, listing, parts_of

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
FOLDERS = {
    "backbone": "recognition.backbones",
    "head": "recognition.heads",
    "classifier": "recognition.classifiers",
    "scheduler": "recognition.schedulers",
    "evaluate.sets": "eval.benchmarks",
}


def _all_keys() -> Iterator[Key]:
    for key in keys_of(Config):
        yield key
        for part in parts_of(key):
            yield from part.keys


@pytest.mark.parametrize("key", list(_all_keys()), ids=lambda key: f"{key.name} {key.part}".strip())
def test_every_key_has_a_text(key: Key) -> None:
    assert key.option.text
    assert key.option.hint is not None


def test_every_part_of_every_folder_is_explained() -> None:
    told = {key.name: [part.part for part in parts_of(key)] for key in keys_of(Config)}
    assert {name: parts for name, parts in told.items() if parts} == {
        name: part_names(package) for name, package in FOLDERS.items()
    }


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert train.main(arguments) == 0
    return capsys.readouterr().out


def test_help_lists_sections_keys_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for key in keys_of(Config):
        assert f"{key.name}: " in shown
    lines = [line.strip() for line in shown.splitlines()]
    at = lines.index("optim.momentum: a number at least 0 and less than 1; default 0.9")
    assert lines[at + 1].startswith("Momentum of SGD")
    assert "optim.lr: a number more than 0; required" in lines
    for package in FOLDERS.values():
        assert all(name in shown for name in part_names(package))


def test_a_key_of_a_part_is_shown_for_every_part_that_has_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = _printed(capsys, "--explain", "scheduler.factor")
    assert [line.partition(":")[0] for line in shown.splitlines() if line[0] != " "] == [
        "scheduler.factor (fastface)",
        "scheduler.factor (moving_haar)",
        "scheduler.factor (multi_step)",
    ]
    shown = _printed(capsys, "--explain", "scheduler.factor", "--config", QUICKSTART)
    assert shown.splitlines()[0] == (
        "scheduler.factor (fastface): a number more than 0 and less than 1; default 0.5"
    )
    assert "multi_step" not in shown
    chosen = ("--config", QUICKSTART, "scheduler=multi_step")
    shown = _printed(capsys, "--explain", "scheduler.milestones", *chosen)
    assert "(multi_step): a list (each a number at least 0) in ascending order" in shown
    assert "default [10, 16, 18]" in shown


def test_a_section_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _printed(capsys, "--explain", "optim")
    assert shown.startswith("optim: ")
    assert "optim.lr: a number more than 0; required" in shown
    assert 'optim.name: sgd, adamw or muon; default "sgd"' in shown
    assert "run." not in shown
    shown = _printed(capsys, "--explain", "data.augment")
    assert "data.augment.flip: a number at least 0 and at most 1; default 0.5" in shown
    assert "data.size" not in shown
    assert "evaluate.sets[].bin (pairs): " in _printed(capsys, "--explain", "evaluate.sets")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--explain", "optim.lrr"], "error: --explain optim.lrr: no such key; did you mean"),
        (["--explain", "head.margn"], "did you mean head.margin"),
        (["--explain", "sample_rate"], "did you mean classifier.sample_rate"),
        (["--config", "nowhere.yaml"], "error: nowhere.yaml: no such config file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--resume"], ["--config"], ["--bogus"]])
def test_wrong_arguments_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_the_help_lists_every_key_of_sections_and_parts() -> None:
    lines = {line.strip() for line in listing().splitlines()}
    values = [key for key in _all_keys() if not is_dataclass(key.option.hint)]
    assert [str(key) for key in values if str(key) not in lines] == []
    assert "head.margin (cosface): a number at least 0; default 0.4" in lines
