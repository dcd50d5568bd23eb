"""Encoded images by number: in memory, as files, or as stored entries of a zip."""

import os
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.files import is_special, open_file, read_file, retried
from data.limits import MOST_IMAGE_BYTES

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Images(Protocol):
    """Encoded images by number."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> bytes:
        """Encoded bytes (JPEG, PNG, …) of an image; errors name the file and the key."""

    def describe(self, index: int) -> str:
        """File and key of an image, for messages."""


def stem(name: str) -> str:
    """A path without an image suffix."""
    head, dot, suffix = name.rpartition(".")
    return head if dot and f".{suffix.lower()}" in SUFFIXES else name


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
        return read_file(self.paths[index], MOST_IMAGE_BYTES)

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


def image_files(folder: Path, pattern: str = "**/*") -> list[Path]:
    """The image files of a folder, sorted; FileNotFoundError if there is none.

    FIFOs, sockets and devices are no images.
    """
    found = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES)
    paths = [path for path in found if not is_special(path)]
    if not paths:
        raise FileNotFoundError(f"{folder / pattern}: no image there")
    return paths


def open_images(root: str | Path, names: list[str]) -> Images:
    """The named images (their suffixes may be missing) of a folder or an uncompressed zip."""
    root = Path(root)
    if root.is_dir():
        return FileImages([find_image(root, name) for name in names])
    if root.is_file() and zipfile.is_zipfile(root):
        return _open_zip(root, names)
    raise FileNotFoundError(
        f"{root}: no such folder or zip; expected one with {names[0] if names else 'images'}"
    )


def find_image(root: Path, name: str) -> Path:
    """The file `root/name`, whose suffix may be missing in `name`."""
    for suffix in ("", *SUFFIXES):
        if (root / (name + suffix)).is_file():
            return root / (name + suffix)
    raise FileNotFoundError(
        f"{root / name}: no such image (tried {', '.join(SUFFIXES)}); the list names it"
    )


def _open_zip(path: Path, names: list[str]) -> ZipImages:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: no zip directory can be read ({error})") from None
    entries = [entry for entry in members if entry.filename.lower().endswith(SUFFIXES)]
    # Lists name images by their whole path, by the last folder and the file, or by the file alone.
    by_name: dict[str, list[zipfile.ZipInfo]] = {}
    for entry in entries:
        parts = stem(entry.filename).split("/")
        for name in {stem(entry.filename), "/".join(parts[-2:]), parts[-1]}:
            by_name.setdefault(name, []).append(entry)
    found = [by_name.get(stem(name), []) for name in names]
    missing = [name for name, choice in zip(names, found, strict=True) if not choice]
    if missing:
        raise FileNotFoundError(
            f"{path}: lacks {len(missing)} of the listed images, the first is {missing[0]}"
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
