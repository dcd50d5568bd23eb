"""Draws verification pairs from a face set, and writes them as a .bin or as a list.

    python -m tools.make_pairs MY_FACES my_pairs.bin --count 6000

Half of the pairs show one person. The pairs are in ten folds, and no person is in two folds. A
target that ends in .txt gets lines of `path path 0|1`, which needs a face set of image files in
folders.
"""

from pathlib import Path

import numpy as np

from data.files import atomic_write
from data.options import Count, CountOrZero
from data.pairs.drawn import from_faces
from data.pairs.lists import Pairs
from data.pairs.verification_bin import write_bin
from data.text import escape_name
from tools._cli import command


def write_pairs(out: Path, pairs: Pairs) -> None:
    """Write a verification .bin, with the encoded images as they are."""
    rows = np.stack([pairs.first, pairs.second], 1).reshape(-1)
    write_bin(out, [pairs.images.read(row) for row in rows.tolist()], pairs.same)


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
        lines.append("\t".join([*map(escape_name, names), str(int(same))]) + "\n")
    with atomic_write(out) as file:
        file.write("".join(lines).encode())


def run(faces: str, target: Path, *, count: Count = 6000, seed: CountOrZero = 0) -> dict[str, int]:
    """Draw the pairs of one face set.

    faces: any face set.
    target: name of the .bin or .txt to write.
    count: number of pairs.
    seed: seed of the drawing; another seed draws other pairs.
    """
    if target.suffix not in (".bin", ".txt"):
        raise ValueError(f"{target}: expected a name that ends in .bin or .txt")
    pairs = from_faces(faces, count=count, seed=seed)
    if target.suffix == ".txt":
        write_list(target, pairs, Path(faces))
    else:
        write_pairs(target, pairs)
    record = {"pairs": len(pairs.same), "genuine": int(pairs.same.sum())}
    notes = "".join(f"; {note}" for note in pairs.notes)
    print(f"{target}: {record['pairs']} pairs, {record['genuine']} of one person{notes}")
    return record


main = command(run)
