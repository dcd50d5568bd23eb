"""Listed pairs: a list file with an image folder or zip, FastFace's folder, or a .bin."""

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.arrays import read_npy
from data.files import read_lines
from data.images import BytesImages, FileImages, Images, find_image, open_images
from data.pairs.verification_bin import read_bin
from data.text import show_invisible

Line = tuple[int, list[str]]
"""The number of a line in a file, and its fields."""


@dataclass(frozen=True)
class Pairs:
    """P pairs of images.

    first, second: int64 (P,), numbers of images. same: bool (P,), whether both show one person.
    notes: warnings about the pairs, for reports. digest: by which results on the same pairs are
    known, wherever the images lie (`pairs_digest`); empty if it was not computed.
    """

    images: Images
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    notes: tuple[str, ...] = ()
    digest: str = ""


def read_pair_list(path: str | Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Names of both images of each pair, and bool (P,), from a text file in one of four forms.

    LFW: `NAME 1 4` (one person) or `NAME 1 OTHER 4` (two people), where image 1 of NAME is
        NAME/NAME_0001. A line of counts may come first.
    Plain: `path path 0|1`, where 1 means one person.
    CALFW and CPLFW: two lines `NAME_0001.jpg K` per pair. K = 0 on both lines means two people.
    SLLFW: two lines `NAME/NAME_0001.jpg` per pair. The same folder means one person.

    Tabs, commas or blanks separate the fields, the same in every line; a heading may come first.
    """
    path = _existing(path, "a pair list")
    rows = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip(" \t,")]
    if not rows:
        raise ValueError(f"{path}: no pair in it")
    first_error: ValueError | None = None
    for separator, split in SEPARATORS.items():
        if separator in rows[-1][1]:
            try:
                return _parse(path, [(number, split(line)) for number, line in rows])
            except ValueError as error:
                first_error = first_error or error
    if first_error:
        raise first_error
    return _parse(path, [(number, [line]) for number, line in rows])


SEPARATORS: dict[str, Callable[[str], list[str]]] = {
    "\t": lambda line: line.split("\t"),
    ",": lambda line: next(csv.reader([line], skipinitialspace=True)),
    " ": lambda line: [field for field in line.split(" ") if field],
}
"""How the fields of a line are found, in the order in which they are tried."""


def _parse(path: Path, rows: list[Line]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The pairs in the fields of each line; ValueError names a line that holds none."""
    lines = []
    for number, fields in rows:
        parts = [field.strip(" ") for field in fields]
        while parts and not parts[-1]:  # a spreadsheet fills up short rows
            parts.pop()
        first = number == rows[0][0]
        counts = first and len(parts) <= 2 and all(part.isdigit() for part in parts)
        path_like = any("/" in part or "\\" in part for part in parts)
        heading = first and not path_like and not any(part.isdigit() for part in parts)
        if parts and not counts and not heading:
            lines.append((number, parts))
    if not lines:
        raise ValueError(f"{path}: no pair in it")
    read = _read_two_lines if len(lines[0][1]) <= 2 else _read_one_line
    pairs = read(path, lines)
    return [(a, b) for a, b, _ in pairs], np.array([same for *_, same in pairs])


def _read_one_line(path: Path, lines: list[Line]) -> list[tuple[str, str, bool]]:
    pairs = []
    for number, parts in lines:
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            pairs.append((_lfw_name(*parts[:2]), _lfw_name(*parts[::2]), True))
        elif len(parts) == 4 and parts[1].isdigit() and parts[3].isdigit():
            pairs.append((_lfw_name(*parts[:2]), _lfw_name(*parts[2:]), False))
        elif len(parts) == 3 and parts[2] in ("0", "1"):
            pairs.append((parts[0], parts[1], parts[2] == "1"))
        else:
            raise ValueError(
                f"{path}, line {number}: {_shown(parts)}; "
                "expected `NAME i j`, `NAME i OTHER j` or `path path 0|1`"
            )
    return pairs


def _shown(parts: list[str]) -> str:
    """The fields of a line, with a code for each character that cannot be seen."""
    return " ".join(f"'{show_invisible(part)}'" for part in parts)[:200]


def _read_two_lines(path: Path, lines: list[Line]) -> list[tuple[str, str, bool]]:
    """The pairs of CALFW, CPLFW and SLLFW lists.

    CALFW and CPLFW list all genuine pairs before all others. Therefore each of the ten folds gets a
    tenth of both kinds, in the order of the list, as in FaceX-Zoo
    (test_protocol/lfw/pairs_parser.py).
    """
    marked = len(lines[0][1]) == 2
    pairs = []
    for (number, first), (_, second) in zip(lines[0::2], lines[1::2], strict=False):
        a, b = ([part.replace("\\", "/") for part in line] for line in (first, second))
        if marked:
            good = len(a) == len(b) == 2 and a[1] == b[1] and a[1].isdigit()
        else:
            good = len(a) == len(b) == 1 and "/" in a[0] and "/" in b[0]
        if not good:
            expected = "`IMAGE K` with one K" if marked else "`NAME/IMAGE`"
            raise ValueError(
                f"{path}, line {number}: {_shown(first)} and {_shown(second)}; "
                f"expected {expected} on both lines of a pair"
            )
        same = a[1] != "0" if marked else a[0].split("/")[0] == b[0].split("/")[0]
        pairs.append((first[0] if marked else a[0], second[0] if marked else b[0], same))
    if len(lines) % 2:
        raise ValueError(f"{path}, line {lines[-1][0]}: a pair without its second line")
    if not marked:
        return pairs

    # A tenth of the genuine pairs, a tenth of the others, the next tenth of both, and so on.
    genuine = np.array([same for *_, same in pairs])
    kinds = np.flatnonzero(genuine), np.flatnonzero(~genuine)
    tenths = zip(*(np.array_split(kind, 10) for kind in kinds), strict=True)
    return [pairs[i] for both in tenths for tenth in both for i in tenth]


def _lfw_name(person: str, number: str) -> str:
    return f"{person}/{person}_{int(number):04d}"


def index_names(pairs: list[tuple[str, str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(the distinct names in order of appearance, first, second), as in `Pairs`."""
    rows: dict[str, int] = {}
    first = np.array([rows.setdefault(a, len(rows)) for a, _ in pairs])
    second = np.array([rows.setdefault(b, len(rows)) for _, b in pairs])
    return list(rows), first, second


def from_list(pairs: str | Path, images: str | Path) -> Pairs:
    """A pair list with its image folder or uncompressed zip."""
    listed, same = read_pair_list(pairs)
    names, first, second = index_names(listed)
    digest = pairs_digest(names, first, second, same)
    return Pairs(open_images(images, names), first, second, same, fold_notes(same), digest)


def from_bin(path: str | Path) -> Pairs:
    """A verification .bin, read without unpickling anything."""
    encoded, same = read_bin(path)
    rows = np.arange(len(encoded))
    first, second = rows[0::2], rows[1::2]
    digest = pairs_digest([f"{len(image)} bytes" for image in encoded], first, second, same)
    images = BytesImages(encoded, str(path))
    return Pairs(images, first, second, same, fold_notes(same), digest)


def from_numbered(folder: str | Path) -> Pairs:
    """FastFace's folder: `imgs/0.jpg`, `imgs/1.jpg`, …, two per pair, and `pair_label.npy` (P,)."""
    folder = Path(folder)
    labels = _existing(folder / "pair_label.npy", "the pairs' labels")
    same = read_npy(labels).astype(bool).ravel()
    paths = [find_image(folder / "imgs", str(i)) for i in range(2 * len(same))]
    rows = np.arange(len(paths))
    first, second = rows[0::2], rows[1::2]
    sizes = [f"{path.stat().st_size} bytes" for path in paths]
    digest = pairs_digest(sizes, first, second, same)
    return Pairs(FileImages(paths, folder), first, second, same, fold_notes(same), digest)


def pairs_digest(
    keys: Sequence[str], first: np.ndarray, second: np.ndarray, same: np.ndarray
) -> str:
    """32 hex digits over both images of each pair and its label, in the order of the pairs.

    keys: what tells the images from each other: names in a list, or sizes where there are no names.
    """
    digest = hashlib.blake2b(digest_size=16)
    for a, b, one in zip(first.tolist(), second.tolist(), same.tolist(), strict=True):
        digest.update(f"{keys[a]}\n{keys[b]}\n{one}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def fold_notes(same: np.ndarray, folds: int = 10) -> tuple[str, ...]:
    """A warning if the share of genuine pairs differs much between consecutive folds."""
    if len(same) < folds:
        return ()
    shares = np.array([fold.mean() for fold in np.array_split(same, folds)])
    if np.abs(shares - same.mean()).max() <= 0.1:
        return ()
    return (
        f"the list's order makes the {folds} consecutive folds unfair: their genuine share is "
        f"{shares.min():.0%} to {shares.max():.0%} ({same.mean():.0%} in the whole list); "
        "each tenth needs both kinds, as in LFW",
    )


def _existing(path: str | Path, what: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {what}")
    return Path(path)
