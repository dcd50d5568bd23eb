"""Writes any FaceSet as a folder per identity, as zip shards or as WebDataset tar shards; encoded bytes are copied."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.files import written_whole
from data.types import FaceSet

Progress = Callable[[int], None]
KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"RIFF", "webp"))
DATE = (1980, 1, 1, 0, 0, 0)


def identity_names(faces: FaceSet) -> list[str]:
    """Names of all identities, fit for folders: the set's own where it has them, else the label in seven digits."""
    names = getattr(faces, "names", None)
    if names is None:
        return [f"{label:07d}" for label in range(faces.num_classes)]
    clean = [re.sub(r"[\\:\0]|^\.+|/(?=\.)", "_", str(name)).strip("/") or "_" for name in names]
    if len(set(clean)) != len(clean):
        return [f"{label:07d}_{name}" for label, name in enumerate(clean)]
    return clean


def suffix_of(encoded: bytes, where: str) -> str:
    """File name suffix by the bytes an image begins with."""
    for begin, suffix in KINDS:
        if encoded.startswith(begin):
            return suffix
    raise ValueError(f"{where}: begins {encoded[:8].hex()}, neither JPEG, PNG, BMP nor WebP; see tools.verify")


def write_folder(faces: FaceSet, path: str, *, progress: Progress) -> None:
    """PATH/IDENTITY/000000012.jpg, numbered as in the source. Files of a call that was killed are kept."""
    names = identity_names(faces)
    for index in range(len(faces)):
        encoded = faces.read(index)
        folder = Path(path, names[faces.labels[index]])
        target = folder / f"{index:09d}.{suffix_of(encoded, faces.describe(index))}"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(target, durable=False) as file:  # an fsync an image would take longer than all else
                file.write(encoded)
        progress(1)


def write_shards(faces: FaceSet, path: str, *, kind: str, shard: int, progress: Progress) -> None:
    """kind "zip" (IDENTITY/000000012.jpg, stored) or "tar" (000000012.jpg with .cls); `shard` images a file.

    shard 0: one file, PATH. Otherwise PATH/000000.zip …; shards that a killed call had finished are kept.
    """
    write = _write_zip if kind == "zip" else _write_tar
    if shard == 0:
        write(faces, Path(path), np.arange(len(faces)), progress)
        return
    os.makedirs(path, exist_ok=True)
    for number, start in enumerate(range(0, len(faces), shard)):
        target = Path(path, f"{number:06d}.{kind}")
        indices = np.arange(start, min(start + shard, len(faces)))
        if target.exists():
            progress(len(indices))
        else:
            write(faces, target, indices, progress)


def _members(faces: FaceSet, indices: np.ndarray, progress: Progress) -> Iterator[tuple[int, str, bytes]]:
    for index in indices.tolist():
        encoded = faces.read(index)
        yield index, f"{index:09d}.{suffix_of(encoded, faces.describe(index))}", encoded
        progress(1)


def _write_zip(faces: FaceSet, target: Path, indices: np.ndarray, progress: Progress) -> None:
    names = identity_names(faces)
    with written_whole(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, name, encoded in _members(faces, indices, progress):
            archive.writestr(zipfile.ZipInfo(f"{names[faces.labels[index]]}/{name}", DATE), encoded)


def _write_tar(faces: FaceSet, target: Path, indices: np.ndarray, progress: Progress) -> None:
    with written_whole(target) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index, name, encoded in _members(faces, indices, progress):
            for member, data in ((name, encoded), (f"{index:09d}.cls", str(int(faces.labels[index])).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
