"""python -m tools.make_pairs: verification pairs of one's own pictures, as a list or packed into a
.bin.

Draws balanced pairs from any set of faces, in ten folds that share no person:
    python -m tools.make_pairs MY_FACES my_pairs.bin --count 6000
A target that ends in .txt gets `path path 0|1` lines instead, for face sets that are folders of
image files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.files import atomic_write
from data.pairs.drawn import from_faces
from data.pairs.lists import Pairs
from data.pairs.verification_bin import write_bin


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for a wrong argument or file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("faces", help="any set of faces to draw from")
    parser.add_argument("target", help=".bin or .txt to write")
    parser.add_argument("--count", type=int, default=6000, help="pairs to draw (default 6000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pairs")
    args = parser.parse_args(argv)
    try:
        print(make_pairs(args))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def make_pairs(args: argparse.Namespace) -> str:
    """Does it, and says what was done."""
    out = Path(args.target)
    if out.suffix not in (".bin", ".txt"):
        raise ValueError(f"{out}: expected a name that ends in .bin or .txt")
    pairs = from_faces(args.faces, count=args.count, seed=args.seed)
    if out.suffix == ".txt":
        write_list(out, pairs, Path(args.faces))
    else:
        sides = zip(pairs.first, pairs.second, strict=True)
        write_bin(out, [pairs.images.read(int(row)) for pair in sides for row in pair], pairs.same)
    notes = "".join(f"; {note}" for note in pairs.notes)
    return f"{out}: {len(pairs.same)} pairs, {int(pairs.same.sum())} of one person{notes}"


def write_list(out: Path, pairs: Pairs, root: Path) -> None:
    """`path path 0|1` lines, paths relative to root."""
    lines = []
    for a, b, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        paths = [Path(pairs.images.describe(int(row))) for row in (a, b)]
        if not all(path.is_file() for path in paths):
            raise ValueError(
                f"{paths[0]} is no image file of its own; write a .bin instead of {out.name}"
            )
        lines.append(
            "\t".join([*(str(path.relative_to(root)) for path in paths), str(int(same))]) + "\n"
        )
    with atomic_write(out) as file:
        file.write("".join(lines).encode())


if __name__ == "__main__":
    sys.exit(main())
