"""Writes a set of the format `folder`."""

from pathlib import Path


def make(folder: Path, images: dict[str, list[bytes]]) -> Path:
    """images: the encoded images of each person, in the order of the labels."""
    for name, encoded in images.items():
        (folder / name).mkdir()
        for number, data in enumerate(encoded):
            (folder / name / f"{number}.jpg").write_bytes(data)
    return folder
