"""The one manner of all command lines: `--help`, `error: …` on one line, exit codes, `--json`.

Exit code 0: done. 1: what was asked for was looked at and failed. 2: a wrong argument or file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any


class Failed(Exception):
    """The command ran to its end, and its answer is no: exit code 1."""


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE`, with `--json`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    return parser


def run_command(
    action: Callable[[argparse.Namespace], Mapping[str, Any] | None], options: argparse.Namespace
) -> int:
    """Call `action`, print its record as the last line where `--json` asks for it, give the exit code."""
    try:
        record = action(options)
    except Failed as failure:
        return _complain(failure, 1)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    if options.json:
        print(json.dumps(record))
    return 0


def _complain(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
