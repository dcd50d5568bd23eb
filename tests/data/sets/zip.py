"""Writes a set of the format `zip`."""

import zipfile
from pathlib import Path


def make(folder: Path, images: dict[str, list[bytes]]) -> Path:
    """images: the encoded images of each person, in the order of the labels."""
    path = folder / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, encoded in images.items():
            for number, data in enumerate(encoded):
                archive.writestr(f"{name}/{number}.jpg", data)
    return path
