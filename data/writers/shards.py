"""Writes any FaceSet as zip shards or as WebDataset tar shards. The encoded bytes are copied."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from data.files import atomic_write
from data.names import archive_name
from data.types import FaceSet
from data.writers._bad import BadImages, read_numbers, write_numbers
from data.writers._names import Progress, identity_names, image_suffix

Write = Callable[[FaceSet, Path, range, Progress, BadImages], None]
DATE = (1980, 1, 1, 0, 0, 0)


def write_shards(
    faces: FaceSet,
    path: str,
    *,
    kind: str,
    shard: int,
    progress: Progress,
    bad: BadImages | None = None,
) -> None:
    """Writes PATH/000000.zip … with `shard` images each; shard 0 writes one file, PATH.

    kind: "zip" (stored members IDENTITY/000000012.jpg) or "tar" (000000012.jpg with .cls, in a
    folder with the name of the identity if there are names).

    Shards that an earlier call has finished are kept. A shard with bad images, which are noted in
    `bad`, is written too, but waits under another name unless they may be skipped.
    """
    bad = bad or BadImages(faces)
    write = _write_zip if kind == "zip" else _write_tar
    if shard == 0:
        _finish(write, faces, Path(path), range(len(faces)), progress, bad)
        return
    os.makedirs(path, exist_ok=True)
    for number, start in enumerate(range(0, len(faces), shard)):
        target = Path(path, f"{number:06d}.{kind}")
        indices = range(start, min(start + shard, len(faces)))
        if target.exists():
            progress(len(indices))
        else:
            _finish(write, faces, target, indices, progress, bad)


def _finish(
    write: Write,
    faces: FaceSet,
    target: Path,
    indices: range,
    progress: Progress,
    bad: BadImages,
) -> None:
    """Writes a file, or gives its name to one that waits for the same bad images."""
    waiting = target.with_name(f".{target.name}.{indices.start}-{indices.stop}.waiting")
    listed = Path(f"{waiting}.bad")
    missed = read_numbers(listed)
    if waiting.exists() and listed.exists() and bad.still(missed, image_suffix):
        progress(len(indices))
    else:
        write(faces, waiting, indices, progress, bad)
        missed = [index for index in indices if index in bad.found]
        write_numbers(listed, {index: bad.found[index] for index in missed})
    if bad.may_finish(missed):
        os.replace(waiting, target)
        listed.unlink()


def _members(
    faces: FaceSet, indices: range, progress: Progress, bad: BadImages, *, folders: bool
) -> Iterator[tuple[int, str, bytes]]:
    """(label, path, encoded bytes) of each good image.

    The path is NAME/FILE if identities have names, or if `folders` asks for folders in any case.
    """
    names = None
    if folders or getattr(faces, "names", None) is not None:
        names = identity_names(faces, archive_name)
    for index in indices:
        encoded = bad.read(index, image_suffix)
        if encoded is not None:
            suffix = image_suffix(encoded, faces.describe(index))
            label, file = int(faces.labels[index]), f"{index:09d}.{suffix}"
            yield label, f"{names[label]}/{file}" if names else file, encoded
        progress(1)


def _write_zip(
    faces: FaceSet, target: Path, indices: range, progress: Progress, bad: BadImages
) -> None:
    with atomic_write(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for _, name, encoded in _members(faces, indices, progress, bad, folders=True):
            archive.writestr(zipfile.ZipInfo(name, DATE), encoded)


def _write_tar(
    faces: FaceSet, target: Path, indices: range, progress: Progress, bad: BadImages
) -> None:
    with (
        atomic_write(target) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for label, name, encoded in _members(faces, indices, progress, bad, folders=False):
            _add(archive, name, encoded)
            _add(archive, f"{name.rpartition('.')[0]}.cls", str(label).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
