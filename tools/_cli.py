"""The one manner of all command lines: `--help`, `error: …` on one line, exit codes, `--json`.

Exit code 0: done. 1: the command ran to its end and its answer is no. 2: a wrong argument or file.
130: stopped with Ctrl-C.

A command is a module with `main(argv)`. Modules whose names begin with an underscore are helpers.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NoReturn

from data.parts import hint


class Failed(Exception):
    """The command ran to its end, and its answer is no: exit code 1.

    record: what `--json` prints all the same.
    """

    def __init__(self, message: str, record: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = record


class _Help(argparse.RawDescriptionHelpFormatter):
    """Names the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        plain = action.default in (None, False, argparse.SUPPRESS) or "default" in text
        return text if plain else f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument on one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE` with `--json`. `doc` is the description in `--help`."""
    parser = _Parser(prog=f"python -m {module}", description=doc, formatter_class=_Help)
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    return parser


def run_command(
    action: Callable[[argparse.Namespace], Mapping[str, Any] | None], options: argparse.Namespace
) -> int:
    """Call `action`, print the record that it returns where `--json` asks for it, give the code.

    An action raises ValueError or OSError for a wrong argument or file, and Failed for a no.
    """
    try:
        record, code = action(options), 0
    except Failed as failure:
        record, code = failure.record, _complain(str(failure), 1)
    except (ValueError, OSError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    if options.json and record is not None:
        print(json.dumps(record))
    return code


def run_package(package: str, argv: list[str] | None = None) -> int:
    """`python -m PACKAGE`: list the commands, or run the one that is named with what follows."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {module.removeprefix(f"{package}."): module for module in command_names(package)}
    if name in ("-h", "--help"):
        print(f"{importlib.import_module(package).__doc__}\nHelp: python -m NAME --help\n")
        widest = max(map(len, commands.values()))
        for module in commands.values():
            print(f"  {module:<{widest}}  {first_line(module)}")
        return 0
    if name not in commands:
        return _complain(f"python -m {package}: no command {name!r}; {hint(name, commands)}", 2)
    code: int = importlib.import_module(commands[name]).main(rest)
    return code


def command_names(package: str) -> list[str]:
    """The modules of a package and of the packages in it that are commands, by their full names."""
    paths = importlib.import_module(package).__path__
    modules = pkgutil.walk_packages(paths, f"{package}.")
    return [module.name for module in modules if not module.ispkg and "._" not in module.name]


def first_line(module: str) -> str:
    """The first line of a module's docstring, found without importing the module."""
    source = find_spec(module).loader.get_source(module)  # type: ignore[union-attr]
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _complain(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
