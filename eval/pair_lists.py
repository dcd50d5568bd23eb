"""Where pairs come from: a list file beside an image folder or zip, FastFace's folder, a .bin, or any set of faces."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.faces import open_faces
from data.types import FaceSet
from eval.bin_file import read_bin
from eval.embed import SUFFIXES, Images, stem


@dataclass(frozen=True)
class Pairs:
    """Images (N), and for each pair two rows of them int64 (P,) and whether they are one person, bool (P,)."""

    images: Images
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BytesImages:
    """Encoded images in memory."""

    encoded: Sequence[bytes]
    source: str

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, index: int) -> bytes:
        return self.encoded[index]

    def describe(self, index: int) -> str:
        return f"{self.source}, image {index}"


@dataclass(frozen=True)
class FileImages:
    """Image files by path."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def describe(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class ZipImages:
    """Stored entries of a zip, read by offset: no decompression, no lock between threads."""

    path: Path
    entries: Sequence[zipfile.ZipInfo]

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> bytes:
        entry = self.entries[index]
        with open(self.path, "rb") as file:
            file.seek(entry.header_offset)
            head = file.read(30)
            file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), io.SEEK_CUR)
            return file.read(entry.file_size)

    def describe(self, index: int) -> str:
        return f"{self.path}/{self.entries[index].filename}"


def read_pair_list(path: str | Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Names of both images of each pair, and bool (P,), from a text file in one of four forms.

    LFW: an optional first line of counts, `NAME 1 4` (one person), `NAME 1 OTHER 4` (two); an image is named
    NAME/NAME_0001 there. Plain: `path path 0|1`. CALFW and CPLFW: `NAME_0001.jpg K` on two lines a pair, K 0 on both
    for two people. SLLFW: `NAME/NAME_0001.jpg` on two lines a pair, of one person where the folder is the same.
    """
    path = _existing(path, "a pair list")
    lines: list[tuple[int, list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if any(parts) and not (number == 1 and len(parts) <= 2 and all(part.isdigit() for part in parts)):
            lines.append((number, parts))
    if not lines:
        raise ValueError(f"{path}: no pair in it")
    return _read_two_lines(path, lines) if len(lines[0][1]) <= 2 else _read_one_line(path, lines)


def _read_one_line(path: Path, lines: list[tuple[int, list[str]]]) -> tuple[list[tuple[str, str]], np.ndarray]:
    names: list[tuple[str, str]] = []
    same: list[bool] = []
    for number, parts in lines:
        if len(parts) == 3 and parts[1].isdigit():
            names.append((_lfw_name(parts[0], parts[1]), _lfw_name(parts[0], parts[2])))
            same.append(True)
        elif len(parts) == 4 and parts[1].isdigit() and parts[3].isdigit():
            names.append((_lfw_name(parts[0], parts[1]), _lfw_name(parts[2], parts[3])))
            same.append(False)
        elif len(parts) == 3 and parts[2] in ("0", "1"):
            names.append((parts[0], parts[1]))
            same.append(parts[2] == "1")
        else:
            raise ValueError(
                f"{path}, line {number}: {' '.join(parts)[:80]!r}; expected `NAME i j`, `NAME i OTHER j` or "
                "`path path 0|1`"
            )
    return names, np.array(same)


def _read_two_lines(path: Path, lines: list[tuple[int, list[str]]]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """CALFW, CPLFW and SLLFW. The first two list all genuine pairs before all others: they are put into ten folds, each
    a tenth of both in the list's order, as FaceX-Zoo reads these files (test_protocol/lfw/pairs_parser.py).
    """
    marked = len(lines[0][1]) == 2
    names: list[tuple[str, str]] = []
    same: list[bool] = []
    for (number, a), (_, b) in zip(lines[0::2], lines[1::2], strict=False):
        if marked:
            good = len(a) == len(b) == 2 and a[1] == b[1] and a[1].isdigit()
        else:
            good = len(a) == len(b) == 1 and "/" in a[0] and "/" in b[0]
        if not good:
            expected = "`IMAGE K` with one K" if marked else "`NAME/IMAGE`"
            raise ValueError(f"{path}, line {number}: {a} and {b}; expected {expected} on both lines of a pair")
        names.append((a[0], b[0]))
        same.append(a[1] != "0" if marked else a[0].split("/")[0] == b[0].split("/")[0])
    if len(lines) % 2:
        raise ValueError(f"{path}, line {lines[-1][0]}: a pair without its second line")
    if not marked:
        return names, np.array(same)
    kinds = np.flatnonzero(same), np.flatnonzero(~np.array(same))
    tenths = zip(*(np.array_split(kind, 10) for kind in kinds), strict=True)
    order = np.concatenate([part for both in tenths for part in both])
    return [names[i] for i in order], np.array(same)[order]


def _lfw_name(person: str, number: str) -> str:
    if not number.isdigit():
        raise ValueError(f"image number {number!r} of {person} is not a number")
    return f"{person}/{person}_{int(number):04d}"


def index_names(pairs: list[tuple[str, str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The distinct names in order of appearance, and the rows of both sides of each pair, int64 (P,)."""
    rows: dict[str, int] = {}
    first = np.array([rows.setdefault(a, len(rows)) for a, _ in pairs])
    second = np.array([rows.setdefault(b, len(rows)) for _, b in pairs])
    return list(rows), first, second


def from_list(pairs: str | Path, images: str | Path) -> Pairs:
    """A pair list with its image folder or uncompressed zip."""
    listed, same = read_pair_list(pairs)
    names, first, second = index_names(listed)
    return Pairs(open_images(images, names), first, second, same, fold_notes(same))


def open_images(root: str | Path, names: list[str]) -> Images:
    """The named images (their suffixes may be missing) of a folder or an uncompressed zip."""
    root = Path(root)
    if root.is_dir():
        return FileImages([_find_file(root, name) for name in names])
    if root.is_file() and zipfile.is_zipfile(root):
        return _open_zip(root, names)
    raise FileNotFoundError(f"{root}: no such folder or zip; expected images, the first {names[0] if names else '-'}")


def _find_file(root: Path, name: str) -> Path:
    for suffix in ("", *SUFFIXES):
        if (root / (name + suffix)).is_file():
            return root / (name + suffix)
    raise FileNotFoundError(f"{root / name}: no such image (tried {', '.join(SUFFIXES)}); the list names it")


def _open_zip(path: Path, names: list[str]) -> ZipImages:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(SUFFIXES)]
    by_name: dict[str, list[zipfile.ZipInfo]] = {}
    for entry in entries:
        parts = stem(entry.filename).split("/")
        for name in {stem(entry.filename), "/".join(parts[-2:]), parts[-1]}:
            by_name.setdefault(name, []).append(entry)
    found = [by_name.get(stem(name), []) for name in names]
    missing = [name for name, choice in zip(names, found, strict=True) if not choice]
    if missing:
        raise FileNotFoundError(f"{path}: lacks {len(missing)} of the listed images, the first is {missing[0]}")
    for name, choice in zip(names, found, strict=True):
        if len(choice) > 1:
            raise ValueError(f"{path}: {name} may be {choice[0].filename} or {choice[1].filename}; pack one of them")
        if choice[0].compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: {name} is compressed; pack the images uncompressed (zip -0) or unpack them")
    return ZipImages(path, [choice[0] for choice in found])


def from_bin(path: str | Path) -> Pairs:
    """A verification .bin, read without unpickling anything."""
    encoded, same = read_bin(path)
    rows = np.arange(len(encoded))
    return Pairs(BytesImages(encoded, str(path)), rows[0::2], rows[1::2], same, fold_notes(same))


def from_numbered(folder: str | Path) -> Pairs:
    """FastFace's folder: `imgs/0.jpg`, `imgs/1.jpg`, ... two a pair, and `pair_label.npy` bool (P,)."""
    folder = Path(folder)
    same = np.load(_existing(folder / "pair_label.npy", "the pairs' labels"), allow_pickle=False).astype(bool).ravel()
    paths = [_find_file(folder / "imgs", str(i)) for i in range(2 * len(same))]
    rows = np.arange(len(paths))
    return Pairs(FileImages(paths), rows[0::2], rows[1::2], same, fold_notes(same))


def from_faces(path: str | Path, *, count: int = 6000, seed: int = 0, folds: int = 10) -> Pairs:
    """`count` balanced pairs drawn from any set of faces, the same for the same seed; a fold shares no identity with
    another as long as each can get two (else all folds draw from all identities, and a note says so).
    """
    faces: FaceSet = open_faces(path)
    rng = np.random.default_rng(seed)
    order = np.argsort(faces.labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(faces.labels[order])) + 1)
    notes: tuple[str, ...] = ()
    if count % (2 * folds) or count <= 0:
        raise ValueError(f"count: {count} pairs cannot be balanced over {folds} folds; give a multiple of {2 * folds}")
    if len(members) < 2 * folds:
        groups = [members] * folds
        notes = (f"{len(members)} identities are too few for disjoint folds: the folds share people",)
    else:
        shuffled = [members[i] for i in rng.permutation(len(members))]
        groups = [shuffled[k::folds] for k in range(folds)]
    each = count // (2 * folds)
    first, second, same = [], [], []
    taken: set[tuple[int, int]] = set()
    for k, group in enumerate(groups):
        for genuine in (True, False):
            drawn = _draw(group, each, genuine, rng, taken)
            if len(drawn) < each:
                kind = "genuine" if genuine else "impostor"
                raise ValueError(f"{path}: fold {k} has {len(drawn)} of {each} {kind} pairs; lower count={count}")
            first += [a for a, _ in drawn]
            second += [b for _, b in drawn]
            same += [genuine] * each
    return Pairs(faces, np.array(first), np.array(second), np.array(same), notes)


def _draw(
    group: list[np.ndarray], count: int, genuine: bool, rng: np.random.Generator, taken: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Up to `count` new pairs of a group's images: identities uniformly, then images; each pair at most once."""
    able = [ids for ids in group if len(ids) > 1] if genuine else group
    drawn: list[tuple[int, int]] = []
    if len(able) < (1 if genuine else 2):
        return drawn
    for _ in range(50 * count):
        if len(drawn) == count:
            break
        if genuine:
            a, b = rng.choice(able[rng.integers(len(able))], 2, replace=False)
        else:
            i, j = rng.choice(len(able), 2, replace=False)
            a, b = rng.choice(able[i]), rng.choice(able[j])
        pair = (min(int(a), int(b)), max(int(a), int(b)))
        if pair not in taken:
            taken.add(pair)
            drawn.append(pair)
    return drawn


def fold_notes(same: np.ndarray, folds: int = 10) -> tuple[str, ...]:
    """A warning where consecutive folds do not hold about as many genuine pairs each as the whole list."""
    if len(same) < folds:
        return ()
    shares = np.array([part.mean() for part in np.array_split(same, folds)])
    if np.abs(shares - same.mean()).max() <= 0.1:
        return ()
    return (
        f"the list's order makes the {folds} consecutive folds unfair: genuine share {shares.min():.0%} to "
        f"{shares.max():.0%} (whole list {same.mean():.0%}); each tenth needs both kinds, as in LFW",
    )


def _existing(path: str | Path, what: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {what}")
    return Path(path)
