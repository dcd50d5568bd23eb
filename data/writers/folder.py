"""Writes any FaceSet as one folder per identity. The encoded bytes are copied."""

from pathlib import Path

from data.files import atomic_write
from data.names import SUFFIXES, folder_name
from data.types import FaceSet
from data.writers._bad import BadImages
from data.writers._names import Progress, identity_names, image_suffix


def write_folder(
    faces: FaceSet, path: str, *, progress: Progress, bad: BadImages | None = None
) -> None:
    """Writes PATH/IDENTITY/000000012.jpg, numbered as in the source.

    Files that an earlier call has written are kept. Bad images are noted in `bad`.
    """
    bad = bad or BadImages(faces)
    names = identity_names(faces, folder_name)
    for index in range(len(faces)):
        progress(1)
        folder, stem = Path(path, names[faces.labels[index]]), f"{index:09d}"
        if any((folder / f"{stem}{suffix}").exists() for suffix in SUFFIXES):
            continue
        encoded = bad.read(index, image_suffix)
        if encoded is not None:
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / f"{stem}.{image_suffix(encoded, faces.describe(index))}"
            # An fsync per image would cost more time than everything else.
            with atomic_write(target, durable=False) as file:
                file.write(encoded)
