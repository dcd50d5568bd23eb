"""Draws verification pairs from a face set, and writes them as a .bin or as a list.

    python -m tools.make_pairs MY_FACES my_pairs.bin --count 6000

Half of the pairs show one person. The pairs form ten folds that share no person. A target that ends
in .txt gets lines of `path path 0|1`, which needs a face set of image files in folders.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.files import atomic_write
from data.pairs.drawn import from_faces
from data.pairs.lists import Pairs
from data.pairs.verification_bin import write_bin
from tools._cli import command_parser, run_command
from tools._faces import FACES_HELP


def write_list(out: Path, pairs: Pairs, root: Path) -> None:
    """Write `path path 0|1` lines with paths relative to `root`."""
    lines = []
    for first, second, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        paths = [Path(pairs.images.describe(int(row))) for row in (first, second)]
        if not all(path.is_file() for path in paths):
            raise ValueError(
                f"{paths[0]} is no image file of its own; write a .bin instead of {out.name}"
            )
        names = [str(path.relative_to(root)) for path in paths]
        lines.append("\t".join([*names, str(int(same))]) + "\n")
    with atomic_write(out) as file:
        file.write("".join(lines).encode())


def run(options: argparse.Namespace) -> dict[str, int]:
    out = Path(options.target)
    if out.suffix not in (".bin", ".txt"):
        raise ValueError(f"{out}: expected a name that ends in .bin or .txt")
    pairs = from_faces(options.faces, count=options.count, seed=options.seed)
    if out.suffix == ".txt":
        write_list(out, pairs, Path(options.faces))
    else:
        sides = zip(pairs.first, pairs.second, strict=True)
        write_bin(out, [pairs.images.read(int(row)) for pair in sides for row in pair], pairs.same)
    record = {"pairs": len(pairs.same), "genuine": int(pairs.same.sum())}
    notes = "".join(f"; {note}" for note in pairs.notes)
    print(f"{out}: {record['pairs']} pairs, {record['genuine']} of one person{notes}")
    return record


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("tools.make_pairs", __doc__)
    parser.add_argument("faces", metavar="FACES", help=FACES_HELP)
    parser.add_argument("target", metavar="TARGET", help="name of the .bin or .txt to write")
    parser.add_argument("--count", type=int, default=6000, help="number of pairs")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pairs")
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
