"""A teacher's embeddings of a training set: one .npy file, which runs map into memory.

    NAME.npy          float16 (N,D), one row of length 1 per image, in the order of the set
    NAME.npy.json     whose they are: fingerprint of the set, digest of the model, its size
    NAME.npy.part     the rows so far, until the file is complete

A row is the direction of the sum of the embeddings of an image and of its mirror image. It is 0 for
an image that can't be read. A run that was killed goes on behind the last whole block of rows. A
.npy file without a record is taken as it is, if it has a row per image.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch.nn import functional as F

from data.files import atomic_write, file_digest, read_file
from data.fingerprint import Fingerprint
from data.to_device import to_device
from data.types import FaceSet, Int64
from recognition.config import Config, ConfigError
from recognition.distributed import Ranks, told_once
from recognition.init import Embed, embedded
from recognition.models.facts import Color
from recognition.models.load import load_model
from recognition.models.model import Model
from recognition.teacher import Vectors

log = logging.getLogger(__name__)
BLOCK = 4096  # images between two writes
FOLDER = "teacher_vectors"
"""Folder beside the run folder, in which a run looks for vectors and writes them."""
_MOST_RECORD_BYTES = 1 << 16
_AT_ONCE = 1 << 16  # rows that are checked at a time
_TYPES = ("float16", "float32")


@dataclass(frozen=True)
class Record:
    """Whose vectors a file has.

    set: digest of the set's fingerprint. model: that of the teacher's file, and its color order.
    size: side of the teacher's input, in pixels. width: numbers per vector.
    """

    set: str
    images: int
    model: str
    size: int
    width: int


@dataclass(frozen=True)
class TeacherSource:
    """Where a teacher's vectors come from.

    digest: what tells them from those of another teacher. width: numbers per vector. model: the
    teacher, where it still has to embed images. file: the vectors, None where every batch is
    embedded. record: what a file that is not complete will hold.
    """

    digest: str
    width: int
    model: Model | None
    file: Path | None
    record: Record | None = None


def open_teacher(
    config: Config, faces: FaceSet, fingerprint: Fingerprint, device: torch.device
) -> TeacherSource | None:
    """The teacher of a config, None if it has none. Nothing is written, and no image is read.

    Raises OSError, or a ValueError of one line for a model or a file that can't be used.
    """
    teacher = config.teacher
    if not teacher.given:
        return None
    model = None
    if teacher.model is not None:
        model = _load(teacher.model, teacher.color, device)
        if teacher.augmented:
            return TeacherSource(_digest(model), _width(model), model, None)
    elif not Path(str(teacher.vectors)).exists():
        raise FileNotFoundError(
            f"teacher.vectors: {teacher.vectors}: not found; give teacher.model to compute it"
        )
    expected = None
    if model is not None:
        expected = Record(fingerprint.digest, len(faces), _digest(model), model.size, _width(model))
    file = Path(teacher.vectors) if teacher.vectors else _usual_file(config, expected)
    if file.suffix != ".npy":
        raise ValueError(f"teacher.vectors: {file}: expected the name of a .npy file")
    record = _read_record(file)
    if file.exists():
        if record is None and expected is not None:
            raise ValueError(
                f"teacher.vectors: {file} has no record of its model beside it; leave out "
                "teacher.model to use it as it is, or give another name"
            )
        width = _check_rows(file, len(faces), known=record is not None)
        found = record.model if record else file_digest(file)
        _check_record(file, record, expected, fingerprint)
        if record is None:
            log.info("%s has no record of its set and model: it is taken as it is", file)
        return TeacherSource(found, width, None, file)
    assert model is not None
    assert expected is not None
    if part_of(file).exists():
        _check_record(part_of(file), record, expected, fingerprint)
    return TeacherSource(expected.model, expected.width, model, file, expected)


def vectors_of(source: TeacherSource) -> Vectors:
    """The teacher's vectors for each batch of a run; a file need not be there yet."""
    if source.file is not None:
        return _of_file(source.file)
    assert source.model is not None
    return _of_model(source.model)


def _of_file(file: Path) -> Vectors:
    """Vectors in a .npy file (N,D), which is mapped into memory when the first are asked for."""
    rows = cache(lambda: np.load(file, mmap_mode="r", allow_pickle=False))

    def vectors(images: torch.Tensor, indices: Int64 | None) -> torch.Tensor:
        if indices is None:
            raise ValueError("a batch without the numbers of its images can't be taught")
        return to_device(torch.from_numpy(np.asarray(rows()[indices])), images.device)

    return vectors


def _of_model(model: Model) -> Vectors:
    """Vectors that a model computes of the images of every batch, resized to its own size."""

    def vectors(images: torch.Tensor, indices: Int64 | None) -> torch.Tensor:
        pixels = (images.float() + 1) * 127.5
        if images.shape[-1] != model.size:
            size = (model.size, model.size)
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return model.embed_pixels(pixels).to(images.device)

    return vectors


def part_of(file: Path) -> Path:
    """The name of a file of vectors until it is complete."""
    return file.with_name(f"{file.name}.part")


def complete(
    source: TeacherSource, faces: FaceSet, embed: Embed, ranks: Ranks, device: torch.device
) -> None:
    """Write the vectors that the file of `source` lacks. Every rank calls it, and rank 0 writes.

    embed: gives the sums of the embeddings of images and mirror images. Raises ConfigError where
    the file can't be written, or is being written by another run.
    """
    file, record = source.file, source.record
    if file is None or record is None:
        return
    with told_once(ranks, device), _told(file):
        part = _open_part(file, record) if ranks.rank == 0 else None
    done = 0 if part is None else _rows_of(part, record)
    done = int(ranks.all_reduce_sum(torch.tensor(done, device=device)))
    slices = embedded(faces, embed, ranks, "teacher", first=done, at_once=BLOCK)
    for begin, (indices, found) in zip(range(done, record.images, BLOCK), slices, strict=True):
        rows = torch.zeros(min(BLOCK, record.images - begin), record.width)
        rows[torch.as_tensor(indices) - begin] = F.normalize(found)
        with told_once(ranks, device), _told(file):
            if part is not None:
                part.write(rows.to(torch.float16).numpy().tobytes())
                part.flush()
                os.fsync(part.fileno())
    with told_once(ranks, device), _told(file):
        if part is not None:
            os.replace(part_of(file), file)
            part.close()


def _usual_file(config: Config, expected: Record | None) -> Path:
    assert expected is not None
    name = f"{expected.model[:12]}_{expected.set[:12]}_{expected.images}.npy"
    return Path(config.run.output).absolute().parent / FOLDER / name


def _load(source: str, color: Color | None, device: torch.device) -> Model:
    try:
        model = load_model(source, color=color, device=device.type).to(device)
    except ValueError as error:  # it names the option of the commands
        raise ValueError(
            f"teacher.model: {str(error).replace('--color ', 'teacher.color=')}"
        ) from None
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"teacher.model: {error}. If its vectors exist, they are enough: teacher.model=null "
            "teacher.vectors=FILE.npy"
        ) from None
    if model.needs_landmarks:
        raise ValueError(
            f"teacher.model: {source} needs landmarks, which a teacher does not get; give what "
            f"python -m tools.export {source} --landmarks template --to safetensors writes"
        )
    return model


def _digest(model: Model) -> str:
    """A model's file and how its pixels are read. A model that was loaded has a file."""
    assert model.weights is not None
    return f"{file_digest(model.weights)} {model.color}"


def _width(model: Model) -> int:
    pixels = torch.zeros(1, 3, model.size, model.size, dtype=torch.uint8)
    return int(model.embed(pixels).shape[1])


def _read_record(file: Path) -> Record | None:
    """The record beside a file; None if there is none. ValueError for a damaged one."""
    path = file.with_name(f"{file.name}.json")
    if not path.exists():
        return None
    try:
        tree = json.loads(read_file(path, _MOST_RECORD_BYTES))
        images, size, width = (int(tree[key]) for key in ("images", "size", "width"))
        return Record(str(tree["set"]), images, str(tree["model"]), size, width)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"teacher.vectors: {path}: not a record of vectors; remove it with {file}"
        ) from None


def _check_record(
    file: Path, record: Record | None, expected: Record | None, fingerprint: Fingerprint
) -> None:
    """ValueError for vectors of another set or of another model."""
    if record is None:
        return
    other = "or give another name"
    if record.set != fingerprint.digest:
        counts = f"{record.images:,} images, here {fingerprint.images:,}"
        if record.images == fingerprint.images:
            counts = "as many images, but not the same ones, or other labels"
        raise ValueError(
            f"teacher.vectors: {file} is of another training set ({counts}); give its data.train, "
            f"{other}"
        )
    if expected is not None and record != expected:
        raise ValueError(
            f"teacher.vectors: {file} is of another model than teacher.model; give that, {other}"
        )


def _check_rows(file: Path, images: int, *, known: bool) -> int:
    """The width of the vectors in a file; ValueError if they can't be those of the set.

    known: this project has written them, so they are finite.
    """
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"teacher.vectors: {file}: not a whole .npy file ({' '.join(str(error).split())[:120]})"
        ) from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.name not in _TYPES:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "an archive"
        raise ValueError(
            f"teacher.vectors: {file}: found {found}, expected float16 or float32 (N,D)"
        )
    if len(rows) != images:
        raise ValueError(
            f"teacher.vectors: {file}: has {len(rows):,} rows, but data.train has {images:,} images"
        )
    for begin in () if known else range(0, images, _AT_ONCE):
        finite = np.isfinite(rows[begin : begin + _AT_ONCE]).all(1)
        if not finite.all():
            first = begin + int(np.argmin(finite))
            raise ValueError(f"teacher.vectors: {file}: row {first} holds NaN or infinity")
    return int(rows.shape[1])


def _open_part(file: Path, record: Record) -> IO[bytes]:
    """The part file, locked, with its record beside it, and at the end of its whole rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = open(part_of(file), "a+b")  # noqa: SIM115  closed by `complete`
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        part.close()
        raise ConfigError(
            f"teacher.vectors: {part_of(file)} is being written by another run; start this one "
            "when it is complete"
        ) from None
    begun = _read_record(file) == record
    with atomic_write(file.with_name(f"{file.name}.json"), "w") as beside:
        json.dump(asdict(record), beside, indent=1)
    header = _header(record)
    part.seek(0)
    done = 0
    if begun and part.read(len(header)) == header:
        row = 2 * record.width
        done = (part.seek(0, os.SEEK_END) - len(header)) // (BLOCK * row) * BLOCK
    part.truncate(0 if not done else len(header) + done * 2 * record.width)
    if not done:
        part.write(header)
        part.flush()
    return part


def _rows_of(part: IO[bytes], record: Record) -> int:
    return (part.seek(0, os.SEEK_END) - len(_header(record))) // (2 * record.width)


def _header(record: Record) -> bytes:
    """What stands before the rows in a .npy file of format 1.0."""
    buffer = BytesIO()
    shape = (record.images, record.width)
    fields = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


@contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"teacher.vectors: {error.filename or file} can't be written ({error.strerror})"
        ) from None
