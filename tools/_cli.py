"""What all command lines share: `--help`, `error: …` on one line, exit codes, `--json`.

Exit code 0: done. 1: the command ran to its end and its answer is no. 2: a wrong argument or file.
130: stopped with Ctrl-C.

A command is a module with `main(argv)`. Modules whose names begin with an underscore are helpers.
The arguments of a command are the parameters of a function, so that each of them exists once.
"""

import argparse
import ast
import importlib
import inspect
import io
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib.util import find_spec
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from data.options import REQUIRED, Option, describe, fit, options_of
from data.parts import hint, option_texts
from data.text import one_line

Record = Mapping[str, Any]


class Failed(Exception):
    """The command ran to its end, and its answer is no: exit code 1.

    record: what `--json` prints nevertheless.
    """

    def __init__(self, message: str, record: Record | None = None) -> None:
        super().__init__(message)
        self.record = record


class _Help(argparse.RawDescriptionHelpFormatter):
    """Names the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        none = default is None or default is False or default in ("", (), argparse.SUPPRESS)
        if none or "default" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument on one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def command(function: Callable[..., Record | None]) -> Callable[[list[str] | None], int]:
    """Make `main(argv)` from a function, and run it if the function's module is the program.

    Parameters before the `*` are positional arguments, and those behind it are options. The help
    consists of the module's docstring and of the lines `name: text` in the function's docstring.
    A positional argument with a default is a list that may be empty. Call this last in a module.
    """

    def main(argv: list[str] | None = None) -> int:
        module = sys.modules[function.__module__]
        assert module.__spec__ is not None
        parser = command_parser(module.__spec__.name, module.__doc__)
        values_for = add_options(parser, function, positionals=True)
        options = parser.parse_intermixed_args(argv)
        return run_command(lambda _: function(**values_for(options)), options)

    if function.__module__ == "__main__":
        sys.exit(main())
    return main


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE` with `--json`. `doc` is the description in `--help`."""
    parser = _Parser(prog=f"python -m {module}", description=doc, formatter_class=_Help)
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    return parser


def add_options(
    parser: argparse.ArgumentParser, function: Callable[..., Any], *, positionals: bool = False
) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Add an option for each parameter behind the `*` of a function.

    positionals: add an argument for each parameter before the `*` too. Returns a function from the
    parsed options to the values of all these parameters. A parameter whose type is a dataclass
    stands for its fields, each of which is an option.
    """
    hints = get_type_hints(function, include_extras=True)
    texts, names = option_texts(function), []
    groups: dict[str, tuple[Any, Mapping[str, Option]]] = {}
    for name, one in inspect.signature(function).parameters.items():
        if is_dataclass(kind := hints[name]):
            groups[name] = kind, options_of(kind)
            for field, option in groups[name][1].items():
                _add_option(parser, field, option)
            continue
        text = texts.get(name, "")
        if one.kind is one.KEYWORD_ONLY:
            _add_option(parser, name, Option(kind, one.default, text))
        elif positionals:
            text = text.rstrip(".").replace("%", "%%")
            settings = {**_settings(kind, one.default), "help": text}
            if one.default is not one.empty:
                settings |= {"nargs": "*", "default": one.default}
            parser.add_argument(name, metavar=name.upper(), **settings)
        else:
            continue
        names.append(name)

    def values(options: argparse.Namespace) -> dict[str, Any]:
        made = {
            name: kind(**{field: getattr(options, field) for field in fields})
            for name, (kind, fields) in groups.items()
        }
        return {**{name: getattr(options, name) for name in names}, **made}

    return values


def _add_option(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    required = option.default is REQUIRED
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        **_settings(option.hint, option.default),
        help=option.text.rstrip(".").replace("%", "%%"),
        required=required,
        default=None if required else option.default,
    )


def _settings(hint: Any, default: Any) -> dict[str, Any]:
    """argparse's settings for a type: bool, Literal, tuple, or a type that is made from a text."""
    inside = [one for one in get_args(hint) if one is not type(None)]
    if type(None) in get_args(hint):
        return _settings(inside[0], default)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": inside}
    if get_origin(hint) is tuple:
        return {"nargs": "+", **_settings(inside[0], default)}
    kind = (inside or [hint])[0]
    bounds = describe(hint).removeprefix(f"{describe(kind)} ")

    def convert(text: str) -> Any:
        value = kind(text)
        try:
            return fit(hint, value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {bounds}") from None

    convert.__name__ = kind.__name__  # argparse shows it
    return {"type": convert}


def run_command(
    action: Callable[[argparse.Namespace], Record | None], options: argparse.Namespace
) -> int:
    """Call `action`, print its record if `--json` asks for it, and return the exit code.

    An action raises ValueError or OSError for a wrong argument or file, and Failed if its answer is
    no.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is not UTF-8 may be printed
        sys.stdout.reconfigure(errors="backslashreplace")
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
    """`python -m PACKAGE`: list the commands, or run the one that the first argument names."""
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
    """Full names of the modules in a package, and in the packages in it, that are commands."""
    paths = importlib.import_module(package).__path__
    modules = pkgutil.walk_packages(paths, f"{package}.")
    return [module.name for module in modules if not module.ispkg and "._" not in module.name]


def first_line(module: str) -> str:
    """The first line of a module's docstring, found without importing the module."""
    source = find_spec(module).loader.get_source(module)  # type: ignore[union-attr]
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _complain(message: str, code: int) -> int:
    print(f"error: {one_line(' '.join(message.split()))}", file=sys.stderr)
    return code
