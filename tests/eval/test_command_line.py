"""python -m eval: its commands and options are those of the benchmarks' signatures."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from data.options import Count, PathText, Positive
from data.parts import part_names
from eval.__main__ import main
from eval.benchmarks import PACKAGE
from tools._cli import add_options, command_parser
from tools._model import ModelOptions


def build(
    stored: bool = False,
    *,
    root: PathText,
    other: PathText | None = None,
    count: Count = 10,
    scale: Positive = 1.0,
    target: Literal["a", "b"] = "a",
    keep_norm: bool = True,
) -> None:
    """First line.

    root: 100 % of the
        files.
    count: how many.
    """


def parse(*arguments: str, function: Callable[..., None] = build) -> dict[str, object]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    return add_options(parser, function)(parser.parse_args(arguments))


def test_options_are_those_of_the_signature() -> None:
    defaults = {"root": "x", "other": None, "count": 10, "scale": 1, "target": "a"}
    assert parse("--root", "x") == {**defaults, "keep_norm": True}
    given = ["--count", "3", "--scale", "0.5", "--target", "b", "--no-keep-norm", "--other", "y"]
    assert parse("--root", "x", *given) == {
        "root": "x",
        "other": "y",
        "count": 3,
        "scale": 0.5,
        "target": "b",
        "keep_norm": False,
    }
    assert parse("--root", "x", "--keep-norm")["keep_norm"] is True


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--count", "0"], "--count: found '0', expected at least 1"),
        (["--count", "2.5"], "--count: invalid int value: '2.5'"),
        (["--scale", "nan"], "--scale: found 'nan', expected more than 0"),
        (["--target", "c"], "--target: invalid choice: 'c'"),
    ],
)
def test_wrong_values_are_refused(wrong: list[str], told: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=told):
        parse("--root", "x", *wrong)


@dataclass(frozen=True)
class Where:
    """Options that several commands share."""

    place: str | None = None
    """Where it is."""
    depth: Count = 3
    """How deep."""


def test_a_dataclass_stands_for_its_fields() -> None:
    def find(*, where: Where, name: str = "x") -> None:
        """Find it."""

    assert parse(function=find) == {"where": Where(), "name": "x"}
    given = parse("--place", "here", "--depth", "5", "--name", "y", function=find)
    assert given == {"where": Where("here", 5), "name": "y"}
    with pytest.raises(argparse.ArgumentError, match="--depth: found '0', expected at least 1"):
        parse("--depth", "0", function=find)
    parser = command_parser("find", "About.")
    add_options(parser, find)
    assert "--depth DEPTH How deep (default: 3)" in " ".join(parser.format_help().split())


def test_a_model_that_is_not_named_is_asked_for() -> None:
    with pytest.raises(ValueError, match="give --model, a run folder, a model folder or a file"):
        ModelOptions().load()


def test_help_shows_text_and_default() -> None:
    parser = command_parser("eval pairs", "About.")
    add_options(parser, build)
    told = " ".join(parser.format_help().split())
    assert "--root ROOT 100 % of the files" in told
    assert "how many (default: 10)" in told


def test_every_benchmark_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([])
    assert done.value.code == 0
    told = capsys.readouterr().out
    for command in (*part_names(PACKAGE), "embed"):
        assert f"\n  {command} " in told
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        assert "--mirror, --no-mirror" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pears"], "invalid choice: 'pears'"),
        (["templates"], "--root"),
        (["templates", "--root", ".", "--target", "ijba"], "invalid choice: 'ijba'"),
        (["pairs", "--count", "0"], "at least 1"),
        (["pairs", "--optional"], "--optional"),
    ],
)
def test_wrong_commands_and_options_are_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert told in capsys.readouterr().err


def test_results_are_named_by_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.eye(11, dtype=np.float32)[[*range(10), *range(10)]])
    names = [f"{person}/{person}_{number:04d}" for number in (1, 2) for person in range(10)]
    (tmp_path / "x.txt").write_text("\n".join(names))
    lines = [f"{p} 1 2\n{p} 1 {(p + 1) % 10} 2\n" for p in range(10)]
    (tmp_path / "mine.txt").write_text("".join(lines))
    sources = ["--embeddings", f"{tmp_path}/x.npy", "--names", f"{tmp_path}/x.txt"]
    sources += ["--pairs", f"{tmp_path}/mine.txt", "--json"]
    for given, name in (([], "mine"), (["--name", "other"], "other")):
        assert main(["pairs", *sources, *given]) == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (record["name"], record["protocol"], record["accuracy"]) == (name, "pairs", 100)
