"""Encoded images by number: in memory, as files, or as stored entries of a zip."""

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from unicodedata import normalize

import numpy as np

from data.files import open_file, read_file, retried
from data.limits import MOST_IMAGE_BYTES
from data.names import (
    DEEPER,
    LANDMARKS,
    OUTSIDE,
    SUFFIXES,
    LeftOut,
    composed,
    is_image,
    list_folder,
    member_bytes,
    member_path,
    say_left_out,
    spellings,
    stem,
)
from data.text import show_invisible


class Images(Protocol):
    """Encoded images by number."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> bytes:
        """Encoded bytes (JPEG, PNG, …) of an image; errors name the file and the key."""

    def describe(self, index: int) -> str:
        """File and key of an image, for messages."""


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

    @property
    def landmarks_file(self) -> str:
        return f"{self.source}.{LANDMARKS}"

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Checksums and sizes of the images."""
        keys = np.fromiter(map(zlib.crc32, self.encoded), np.uint32)
        return keys, np.fromiter(map(len, self.encoded), np.int64)


@dataclass(frozen=True)
class FileImages:
    """Image files by path. root: the folder that they lie in, which may hold their landmarks."""

    paths: Sequence[Path]
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        return read_file(self.paths[index], MOST_IMAGE_BYTES)

    def describe(self, index: int) -> str:
        return str(self.paths[index])

    @property
    def landmarks_file(self) -> str | None:
        return None if self.root is None else str(self.root / LANDMARKS)

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Checksums of the paths in `root`, as those of a folder of people, and the sizes."""
        root = self.root or Path()
        names = (os.path.relpath(path, root).replace(os.sep, "/") for path in self.paths)
        keys = np.fromiter((zlib.crc32(os.fsencode(name)) for name in names), np.uint32)
        return keys, np.fromiter((path.stat().st_size for path in self.paths), np.int64)


@dataclass(frozen=True)
class ZipImages:
    """Stored entries of a zip, read by offset: no decompression, no lock between threads."""

    path: Path
    entries: Sequence[zipfile.ZipInfo]

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> bytes:
        return retried(lambda: self._read(index))

    def _read(self, index: int) -> bytes:
        # The local header has 30 bytes, then a name and extra fields, whose lengths it holds.
        entry = self.entries[index]
        with open_file(self.path) as file:
            file.seek(entry.header_offset)
            header = file.read(30)
            if len(header) < 30:
                raise ValueError(f"{self.describe(index)}: the archive ends before this image")
            name, extra = struct.unpack("<26x2H", header)
            file.seek(name + extra, os.SEEK_CUR)
            return file.read(entry.file_size)

    def describe(self, index: int) -> str:
        return f"{self.path}/{self.entries[index].filename}"


def image_files(folder: Path, *, people: bool = False) -> list[Path]:
    """The image files of a folder at any depth, sorted; FileNotFoundError if there is none.

    people: take FOLDER/PERSON/IMAGE only. What is left out is logged.
    """
    left_out, paths = LeftOut(), list[Path]()
    open_folders = [(folder, 0)]
    while open_folders:
        inside, depth = open_folders.pop()
        images, folders = list_folder(str(inside), left_out)
        if people and depth == 0:
            for name in images:
                left_out.add(OUTSIDE, str(inside / name))
        else:
            paths += [inside / name for name in images]
        if people and depth == 1:
            for name in folders:
                left_out.add(DEEPER, str(inside / name))
        else:
            open_folders += [(inside / name, depth + 1) for name in folders]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no image there ({left_out.sentence() or 'it is empty'})"
        )
    say_left_out(str(folder), left_out.sentence())
    return sorted(paths)


def open_images(root: str | Path, names: list[str]) -> Images:
    """The named images (their suffixes may be missing) of a folder or an uncompressed zip."""
    root = Path(root)
    if root.is_dir():
        return FileImages([find_image(root, name) for name in names], root)
    if root.is_file() and zipfile.is_zipfile(root):
        return _open_zip(root, names)
    raise FileNotFoundError(
        f"{root}: no such folder or zip; expected one with {names[0] if names else 'images'}"
    )


def find_image(root: Path, name: str) -> Path:
    """The file `root/name`, whose suffix may be missing in `name`.

    Backslashes may separate folders, and letters may be decomposed, as a Mac writes them.
    """
    for spelling in spellings(name):
        for form in dict.fromkeys(
            (spelling, *(normalize(kind, spelling) for kind in ("NFC", "NFD")))
        ):
            for suffix in ("", *SUFFIXES, *map(str.upper, SUFFIXES)):
                if (root / (form + suffix)).is_file():
                    return root / (form + suffix)
    raise FileNotFoundError(
        f"{root / show_invisible(name)}: no such image (tried {', '.join(SUFFIXES)}); "
        "the list names it"
    )


def _open_zip(path: Path, names: list[str]) -> ZipImages:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: no zip directory can be read ({error})") from None
    # Lists name images by their whole path, by the last folder and the file, or by the file alone.
    by_name: dict[str, list[zipfile.ZipInfo]] = {}
    for entry in members:
        inside = os.fsdecode(member_path(member_bytes(entry)) or b"")
        if is_image(inside):
            whole = stem(composed(inside))
            parts = whole.split("/")
            for name in {whole, "/".join(parts[-2:]), parts[-1]}:
                by_name.setdefault(name, []).append(entry)

    def choices(name: str) -> list[zipfile.ZipInfo]:
        found = (by_name.get(stem(composed(spelling))) for spelling in spellings(name))
        return next(filter(None, found), [])

    found = [choices(name) for name in names]
    missing = [name for name, choice in zip(names, found, strict=True) if not choice]
    if missing:
        raise FileNotFoundError(
            f"{path}: lacks {len(missing)} of the listed images, the first is "
            f"{show_invisible(missing[0])}"
        )
    for name, choice in zip(names, found, strict=True):
        if len(choice) > 1:
            raise ValueError(
                f"{path}: {name} may be {choice[0].filename} or {choice[1].filename}; "
                "keep one of them in the zip"
            )
        if choice[0].compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{path}: {name} is compressed; pack the images uncompressed (zip -0) or unpack "
                "them into a folder"
            )
        length = choice[0].file_size
        if length != choice[0].compress_size or length > min(size, MOST_IMAGE_BYTES):
            raise ValueError(
                f"{path}: {name} claims {length:,} bytes in an archive of {size:,}; "
                f"the limit is {MOST_IMAGE_BYTES:,}"
            )
    return ZipImages(path, [choice[0] for choice in found])
