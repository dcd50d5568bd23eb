"""What all command lines share: every command of tools and scripts behaves alike."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from data.options import ShareBelowOne
from tools._cli import (
    Failed,
    add_options,
    command_names,
    command_parser,
    first_line,
    run_command,
    run_package,
)

ROOT = Path(__file__).parents[2]
COMMANDS = [*command_names("tools"), *command_names("scripts")]


def outcome(result: object, argv: list[str]) -> int:
    def action(options: argparse.Namespace) -> Mapping[str, Any] | None:
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[return-value]

    return run_command(action, command_parser("tools.none", "Nothing.").parse_args(argv))


@pytest.mark.parametrize(
    ("result", "code", "printed", "complaint"),
    [
        ({"a": 1}, 0, '{"a": 1}\n', ""),
        (None, 0, "", ""),
        (Failed("3 are broken", {"broken": 3}), 1, '{"broken": 3}\n', "error: 3 are broken\n"),
        (ValueError("x:\n  is wrong"), 2, "", "error: x: is wrong\n"),
        (FileNotFoundError("x: no such file"), 2, "", "error: x: no such file\n"),
        (KeyboardInterrupt(), 130, "", "error: stopped\n"),
    ],
)
def test_exit_codes_and_the_json_line(
    result: object, code: int, printed: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(result, ["--json"]) == code
    assert capsys.readouterr() == (printed, complaint)
    assert outcome(result, []) == code
    assert capsys.readouterr() == ("", complaint)


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        outcome(KeyError("x"), [])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_module_and_wrong_arguments_are_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(name).main
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m {name} ")
    assert "--json" in text
    with pytest.raises(SystemExit) as stopped:
        main(["--no-such-option", "x", "y", "z"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_a_help_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Action] = []

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        seen.extend(parser._actions)
        raise SystemExit(0)

    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, stop)
    with pytest.raises(SystemExit):
        importlib.import_module(name).main([])
    assert len(seen) > 1
    assert [action.dest for action in seen if not action.help] == []


def sample(
    source: Path,
    *,
    names: tuple[Literal["a", "b"], ...] = ("a",),
    share: ShareBelowOne = 0.0,
    deep: bool = False,
    flat: bool = True,
    out: Path | None = None,
) -> None:
    """One function.

    source: 5 % of it.
    names: some.
    share: part of it.
    """


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("x", {}),
        ("x --names b a --share 0.5", {"names": ["b", "a"], "share": 0.5}),
        ("x --deep --no-flat --out y", {"deep": True, "flat": False, "out": Path("y")}),
        ("x --share 1", "argument --share: found '1', expected"),
        ("x --share much", "argument --share: invalid float value: 'much'"),
        ("x --names c", "argument --names: invalid choice: 'c'"),
        ("", "the following arguments are required: SOURCE"),
    ],
)
def test_arguments_are_the_parameters_of_a_function(
    line: str, changed: dict[str, Any] | str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_parser("tools.sample", "About.")
    values_for = add_options(parser, sample, positionals=True)
    usual = {"source": Path("x"), "names": ("a",), "share": 0.0}
    usual |= {"deep": False, "flat": True, "out": None}
    if isinstance(changed, dict):
        assert values_for(parser.parse_args(line.split())) == {**usual, **changed}
        return
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(line.split())
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {changed}")


def test_help_names_texts_and_defaults() -> None:
    parser = command_parser("tools.sample", "About.")
    add_options(parser, sample, positionals=True)
    told = " ".join(parser.format_help().split())
    assert "SOURCE 5 % of it" in told
    assert "some (default: a)" in told
    assert "(default: 0.0)" in told
    assert "None" not in told
    assert "False" not in told


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_has_a_line_for_each_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package = name.partition(".")[0]
    assert run_package(package, []) == 0
    line = first_line(name)
    assert line.endswith((".", "?"))
    assert line == (importlib.import_module(name).__doc__ or "").splitlines()[0]
    shown = [row.split(None, 1) for row in capsys.readouterr().out.splitlines()]
    assert [name, line] in shown


def test_a_new_tool_is_one_file(tmp_path: Path) -> None:
    """A package of two tools, one helper and one package within, run as a person runs them."""
    (tmp_path / "kit" / "inner").mkdir(parents=True)
    files = {
        "kit/__init__.py": '"""Kit."""\n',
        "kit/__main__.py": (ROOT / "tools/__main__.py").read_text(),
        "kit/_helper.py": "1 / 0\n",
        "kit/shout.py": '"""Shouts."""\ndef main(argv):\n    print(*argv)\n    return 3\n',
        "kit/inner/__init__.py": "",
        "kit/inner/deep.py": '"""Is not imported by the list."""\n1 / 0\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def kit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kit", *arguments]
        paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        return subprocess.run(command, env=paths, capture_output=True, text=True, check=False)

    listed = kit().stdout
    assert "kit.inner.deep  Is not imported by the list." in listed
    assert "kit.shout       Shouts." in listed
    assert "_helper" not in listed
    done = kit("shout", "a", "--b")
    assert (done.returncode, done.stdout) == (3, "a --b\n")
    wrong = kit("shot")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: python -m kit: no command 'shot'; did you mean shout?\n"


def test_json_comes_last(capsys: pytest.CaptureFixture[str]) -> None:
    def action(options: argparse.Namespace) -> dict[str, int]:
        print("a table")
        return {"rows": 2}

    assert run_command(action, command_parser("x", None).parse_args(["--json"])) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"rows": 2}
