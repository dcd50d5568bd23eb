"""Writes any FaceSet as one folder per identity; encoded bytes are copied."""

from __future__ import annotations

from pathlib import Path

from data.files import atomic_write
from data.types import FaceSet
from data.writers._names import Progress, identity_names, suffix_of


def write_folder(faces: FaceSet, path: str, *, progress: Progress) -> None:
    """PATH/IDENTITY/000000012.jpg, numbered as in the source. Files of a call that was killed are
    kept."""
    names = identity_names(faces)
    for index in range(len(faces)):
        encoded = faces.read(index)
        folder = Path(path, names[faces.labels[index]])
        target = folder / f"{index:09d}.{suffix_of(encoded, faces.describe(index))}"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(
                target, durable=False
            ) as file:  # an fsync an image would take longer than all else
                file.write(encoded)
        progress(1)
