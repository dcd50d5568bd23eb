"""Writes any FaceSet as zip shards or as WebDataset tar shards; encoded bytes are copied."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.files import atomic_write
from data.types import FaceSet
from data.writers._names import Progress, identity_names, suffix_of

DATE = (1980, 1, 1, 0, 0, 0)


def write_shards(faces: FaceSet, path: str, *, kind: str, shard: int, progress: Progress) -> None:
    """kind "zip" (IDENTITY/000000012.jpg, stored) or "tar" (000000012.jpg with .cls); `shard`
    images a file.

    shard 0: one file, PATH. Otherwise PATH/000000.zip …; shards that a killed call had finished are
    kept.
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


def _members(
    faces: FaceSet, indices: np.ndarray, progress: Progress
) -> Iterator[tuple[int, str, bytes]]:
    for index in indices.tolist():
        encoded = faces.read(index)
        yield index, f"{index:09d}.{suffix_of(encoded, faces.describe(index))}", encoded
        progress(1)


def _write_zip(faces: FaceSet, target: Path, indices: np.ndarray, progress: Progress) -> None:
    names = identity_names(faces)
    with atomic_write(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, name, encoded in _members(faces, indices, progress):
            archive.writestr(zipfile.ZipInfo(f"{names[faces.labels[index]]}/{name}", DATE), encoded)


def _write_tar(faces: FaceSet, target: Path, indices: np.ndarray, progress: Progress) -> None:
    with (
        atomic_write(target) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for index, name, encoded in _members(faces, indices, progress):
            for member, data in (
                (name, encoded),
                (f"{index:09d}.cls", str(int(faces.labels[index])).encode()),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
