"""The arguments of every tool that opens a face set."""

from __future__ import annotations

import argparse

from data.faces import FORMATS
from data.parts import part_names

FACES_HELP = "a face set: .rec, .zip, .tar, LMDB, a folder of these or of one folder per identity"


def add_faces(parser: argparse.ArgumentParser, name: str) -> None:
    """The positional argument `name` and --format."""
    parser.add_argument(name, metavar=name.upper(), help=FACES_HELP)
    parser.add_argument(
        "--format",
        choices=["auto", *part_names(FORMATS)],
        default="auto",
        help=f"format of {name.upper()}, needed only where several could be meant",
    )
