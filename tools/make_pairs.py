"""python -m tools.make_pairs: verification pairs of one's own pictures, as a list or packed into a .bin.

From any set of faces (balanced pairs, ten folds that share no person):
    python -m tools.make_pairs --faces MY_FACES --count 6000 --to my_pairs.bin
From a list (LFW's form or `path path 0|1`) with its image folder or zip:
    python -m tools.make_pairs --pairs pairs.txt --images FOLDER --to lfw.bin
A --to that ends in .txt gives `path path 0|1` lines instead, for face sets that are folders of image files.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from eval.bin_file import write_bin
from eval.pair_lists import Pairs, from_faces, from_list


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for a wrong argument or file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", help="any set of faces to draw from")
    parser.add_argument("--count", type=int, default=6000, help="pairs to draw (default 6000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pairs")
    parser.add_argument("--pairs", help="pair list instead of --faces")
    parser.add_argument("--images", help="image folder or uncompressed zip of the pair list")
    parser.add_argument("--to", required=True, help=".bin or .txt to write")
    args = parser.parse_args(argv)
    try:
        print(make_pairs(args))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def make_pairs(args: argparse.Namespace) -> str:
    """Does it, and says what was done."""
    out = Path(args.to)
    if out.suffix not in (".bin", ".txt"):
        raise ValueError(f"--to {out}: expected a name that ends in .bin or .txt")
    if args.faces and not args.pairs:
        pairs = from_faces(args.faces, count=args.count, seed=args.seed)
    elif args.pairs and args.images and not args.faces:
        pairs = from_list(args.pairs, args.images)
    else:
        raise ValueError("give --faces SET, or --pairs LIST with --images FOLDER_OR_ZIP")
    if out.suffix == ".txt":
        write_list(out, pairs, Path(args.faces or args.images))
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
            raise ValueError(f"{paths[0]} is no image file of its own; write a .bin instead of {out.name}")
        lines.append("\t".join([*(str(path.relative_to(root)) for path in paths), str(int(same))]) + "\n")
    beside = out.with_name(out.name + ".part")
    with open(beside, "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, out)


if __name__ == "__main__":
    sys.exit(main())
