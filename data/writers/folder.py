"""Writes any FaceSet as one folder per identity. The encoded bytes are copied."""

from pathlib import Path

from data.files import atomic_write
from data.names import folder_name
from data.types import FaceSet
from data.writers._names import Progress, identity_names, image_suffix


def write_folder(faces: FaceSet, path: str, *, progress: Progress) -> None:
    """Writes PATH/IDENTITY/000000012.jpg, numbered as in the source.

    Files that a killed call has written are kept.
    """
    names = identity_names(faces, folder_name)
    for index in range(len(faces)):
        encoded = faces.read(index)
        folder = Path(path, names[faces.labels[index]])
        target = folder / f"{index:09d}.{image_suffix(encoded, faces.describe(index))}"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # An fsync per image would cost more time than everything else.
            with atomic_write(target, durable=False) as file:
                file.write(encoded)
        progress(1)
