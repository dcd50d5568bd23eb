"""The vectors of a set that is cleaned: embedded once, and kept as long as nothing has changed.

A folder of vectors has four files:

    set.json        what it was made from: model, options, and the fingerprint of the set
    vectors.npy     embeddings float16 (N,D) of length 1, one per image
    digests.npy     uint8 (N,16), BLAKE2b of each image's bytes; zeros for one that is bad
    bad.txt         the row of each bad image, and below each of them why

An embedding that was stopped goes on where it was. Embeddings are biometric data like the images.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.arrays import read_npy
from data.decode import decode_into
from data.faces import check_range, open_faces
from data.files import atomic_write, file_digest
from data.fingerprint import fingerprint_of
from data.images import BytesImages, Images
from data.pairs.lists import Pairs, from_bin, from_list
from data.read_image import BadImage, ResizeNotice, read_encoded, read_pixels
from data.subset import choose
from data.text import one_line
from data.types import FaceSet, Int64, Pixels
from eval.extract import write_vectors
from recognition.models.model import Model
from tools._faces import counted
from tools._kept import begin, read_lines, write_lines, write_settings
from tools._progress import progress_bar

SETTINGS, VECTORS, DIGESTS, BAD = "set.json", "vectors.npy", "digests.npy", "bad.txt"
BEGUN = (f"{VECTORS}.part", f"{VECTORS}.position.json")
VERSION = 1
DIGEST = 16  # bytes
COPIED = 16_384  # vectors at a time

BadImages = list[tuple[int, str]]
"""Rows of images that cannot be read or decoded, and why."""


@dataclass(frozen=True)
class Embedded:
    """The vectors of a set.

    vectors: float16 (N,D) of length 1, memory-mapped; a bad image's row means nothing.
    digests: uint8 (N,16), memory-mapped.
    """

    vectors: np.ndarray
    digests: np.ndarray
    bad: BadImages


@dataclass(frozen=True)
class Chosen:
    """The M images of a set that are cleaned, without the bad ones.

    faces: the whole set. rows: int64 (M,), their numbers in it.
    labels: int64 (M,) 0…C-1, without gaps. identities: int64 (C,), the label of each in the set, or
        the new label where `relabeled` says that an index list gave new ones.
    vectors: (M,D), memory-mapped. digests: uint8 (M,16).
    """

    faces: FaceSet
    rows: Int64
    labels: Int64
    identities: Int64
    relabeled: bool
    vectors: np.ndarray
    digests: np.ndarray
    bad: BadImages

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, identity: int) -> str:
        """How an identity is called: by its label, and by its name if the set has names."""
        label = int(self.identities[identity])
        names = None if self.relabeled else getattr(self.faces, "names", None)
        return f"{label}" if names is None else f"{label} ({names[label]})"

    def images_of(self, identity: int) -> Int64:
        """Which of the M images are of an identity, int64."""
        found: Int64 = np.flatnonzero(self.labels == identity)
        return found


class PairImages:
    """The images of a verification set as a FaceSet: those of genuine pairs are of one person.

    Images that differ in no byte are of one person too.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.images = pairs.images
        first, second = pairs.first[pairs.same], pairs.second[pairs.same]
        if isinstance(pairs.images, BytesImages):  # a .bin holds an image once per pair
            rows: dict[bytes, int] = {}
            own = [rows.setdefault(one, at) for at, one in enumerate(pairs.images.encoded)]
            first = np.r_[first, np.arange(len(own))]
            second = np.r_[second, own]
        self.labels: Int64 = connected(len(pairs.images), first, second)
        self.num_classes = int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        return self.images.read(index)

    def describe(self, index: int) -> str:
        return self.images.describe(index)


def connected(count: int, first: np.ndarray, second: np.ndarray) -> Int64:
    """Numbers 0… of the groups into which pairs (P,) of 0…count-1 join them, int64 (count,)."""
    parent = list(range(count))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        parent[root(one)] = root(other)
    found: Int64 = np.unique([root(one) for one in range(count)], return_inverse=True)[1]
    return found


def open_checked(path: str, format: str = "auto") -> FaceSet:
    """The set; ValueError if it has no image, or a label outside its identities."""
    faces = open_faces(path, format, check=False)
    if len(faces) == 0:
        raise ValueError(f"{path}: holds no image")
    check_range(faces.labels, faces.num_classes, path)
    return faces


def open_test(path: str, images: str | None) -> FaceSet:
    """A test set: a set of faces, a verification .bin, or a list of pairs with its images."""
    if images is not None:
        return PairImages(from_list(path, images))
    return PairImages(from_bin(path)) if path.endswith(".bin") else open_checked(path)


def embed_set(faces: FaceSet, path: str, folder: Path, model: Model, mirror: bool) -> Embedded:
    """The vectors of a set in `folder`, which are made if they are not there.

    ValueError if no image is good.
    """
    assert model.weights is not None
    identity = {"model": f"{file_digest(model.weights)} {model.color}", "set": _digest(faces, path)}
    settings = {"version": VERSION, **identity, "size": model.size, "mirror": mirror}
    if not begin(folder, settings, SETTINGS, (VECTORS, DIGESTS, BAD, *BEGUN), "--out"):
        _embed(faces, folder, model, mirror, identity)
        write_settings(folder / SETTINGS, {**settings, "complete": True})
        print(one_line(f"{folder}: vectors of {counted(len(faces), 'image')}; biometric data"))
    vectors, digests = (_mapped(folder / name) for name in (VECTORS, DIGESTS))
    lines = read_lines(folder / BAD)
    if vectors.shape[:1] != digests.shape[:1] or len(vectors) != len(faces):
        raise ValueError(f"{folder}: damaged; remove the folder, then it is made anew")
    bad = [(int(row), why) for row, why in zip(lines[::2], lines[1::2], strict=True)]
    if len(bad) == len(faces):
        raise ValueError(f"{path}: none of its images can be decoded; the first: {bad[0][1]}")
    return Embedded(vectors, digests, bad)


def _digest(faces: FaceSet, path: str) -> str:
    """Changes with the labels, keys and sizes of the images. Without keys, the path decides."""
    found = fingerprint_of(faces).digest
    return found if hasattr(faces, "keys_and_sizes") else f"{found} {path}"


def _mapped(file: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        raise ValueError(f"{file}: damaged; remove its folder, then it is made anew") from None
    return found


def _embed(
    faces: FaceSet, folder: Path, model: Model, mirror: bool, identity: dict[str, str]
) -> None:
    """Write all files but the settings. A second call goes on where the first was stopped."""
    images = _Digesting(faces, folder / DIGESTS, model.size)
    write_vectors(
        model,
        faces,
        folder / VECTORS,
        identity,
        size=model.size,
        mirror=mirror,
        dtype="float16",
        unit=True,
        crop=images.crop,
        progress=partial(progress_bar, what="embedding"),
        finish=lambda: write_lines(folder / BAD, images.bad_lines()),
    )


class _Digesting:
    """Decodes images, and writes the digest of each into a map. A bad image is a black one."""

    def __init__(self, images: Images, file: Path, size: int) -> None:
        self.images, self.notice = images, ResizeNotice(size)
        shape = (len(images), DIGEST)
        if not file.exists():  # then what was embedded before has no digests
            for name in BEGUN:
                file.with_name(name).unlink(missing_ok=True)
            with atomic_write(file) as out:
                np.save(out, np.broadcast_to(np.uint8(0), shape))
        self.digests = np.lib.format.open_memmap(file, "r+")
        if self.digests.shape != shape or self.digests.dtype != np.uint8:
            raise ValueError(f"{file}: damaged; remove its folder, then it is made anew")

    def crop(self, number: int, size: int) -> Pixels:
        out = np.zeros((size, size, 3), np.uint8)
        try:
            encoded = read_encoded(self.images, number)
            found = decode_into(encoded, out)
        except ValueError:
            self.digests[number] = 0
            out[:] = 0
            return out
        if found != self.notice.expected:
            self.notice.say(found, self.images, number)
        digest = hashlib.blake2b(encoded, digest_size=DIGEST).digest()
        self.digests[number] = np.frombuffer(digest, np.uint8)
        return out

    def bad_lines(self) -> Iterator[str]:
        """Row and reason of each bad image, in turn."""
        self.digests.flush()
        for start in range(0, len(self.digests), COPIED):
            bad = ~self.digests[start : start + COPIED].any(1)
            for row in (start + np.flatnonzero(bad)).tolist():
                yield from (str(row), self._why(row))

    def _why(self, row: int) -> str:
        try:
            read_pixels(self.images, row)
        except BadImage as error:
            return str(error)
        return f"{self.images.describe(row)}: could not be read when the set was embedded"


@contextmanager
def chosen(
    faces: FaceSet, embedded: Embedded, subset: str | None, folder: Path
) -> Iterator[Chosen]:
    """The images of a set that an index list names, or all, without the bad ones.

    If these are not all images, their vectors are copied into a file in `folder`, which is removed
    in the end.
    """
    table = None if subset is None else read_npy(subset)
    part = None if table is None else choose(faces, table, str(subset))
    rows = np.arange(len(faces)) if part is None else part.rows
    labels = faces.labels if part is None else part.labels
    good = ~np.isin(rows, [row for row, _ in embedded.bad])
    wanted = set(rows.tolist()) if part is not None and embedded.bad else None
    bad = [one for one in embedded.bad if wanted is None or one[0] in wanted]
    if not good.all():
        rows, labels = rows[good], labels[good]
    if not len(rows):
        raise ValueError(f"{subset}: names no image that can be decoded")
    identities, dense = np.unique(labels, return_inverse=True)
    whole = len(rows) == len(faces) and bool((rows == np.arange(len(rows))).all())
    relabeled = table is not None and table.ndim == 2
    with tempfile.TemporaryDirectory(dir=folder, prefix=".chosen.") as inside:
        vectors = embedded.vectors if whole else _copied(embedded.vectors, rows, Path(inside))
        digests = embedded.digests if whole else embedded.digests[rows]
        yield Chosen(faces, rows, dense, identities, relabeled, vectors, digests, bad)


def _copied(vectors: np.ndarray, rows: Int64, folder: Path) -> np.ndarray:
    """The rows of a map as a map of their own."""
    file, shape = folder / VECTORS, (len(rows), vectors.shape[1])
    copy = np.lib.format.open_memmap(file, "w+", vectors.dtype, shape)
    for start in range(0, len(rows), COPIED):
        copy[start : start + COPIED] = vectors[rows[start : start + COPIED]]
    copy.flush()
    del copy
    return _mapped(file)
