"""Embeddings from a file in place of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import read_lines
from data.images import Images
from data.names import composed, stem
from data.text import one_line


@dataclass(frozen=True)
class Stored:
    """Embeddings made elsewhere.

    embeddings: (N,D) of any float type. rows: name of an image, as `one_line` and without its
    suffix -> row in `embeddings`. source: the file of names, for error messages.
    """

    embeddings: np.ndarray
    rows: dict[str, int]
    source: str

    def lookup(self, images: Images, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings (n,D) of these images, without a copy if they are all rows in order."""
        rows = np.array([self.row(images.describe(int(i))) for i in indices])
        if len(np.unique(rows)) < len(rows):
            raise ValueError(
                f"{self.source}: two images have the same name; store names with their folders"
            )
        if np.array_equal(rows, np.arange(len(self.embeddings))):
            return self.embeddings
        return np.asarray(self.embeddings[rows], np.float32)

    def row(self, path: str) -> int:
        """Row of the image whose name is the longest end of `path` (without its suffix)."""
        folders = _key(path).split("/")
        for start in range(len(folders)):
            row = self.rows.get("/".join(folders[start:]))
            if row is not None:
                return row
        raise ValueError(f"{self.source}: no embedding of {path}")


def load_stored(path: str | Path, names: str | Path) -> Stored:
    """Embeddings from a .npy file (mapped, never unpickled) and their names from a text file.

    names: one line per row, the image's name up to a tab.
    """
    for file in (path, names):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file")
    try:
        embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: {error}; expected a .npy file of floats (N,D)") from None
    lines = read_lines(names)
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or len(embeddings) != len(lines):
        raise ValueError(
            f"{path} holds {embeddings.dtype} {embeddings.shape} and {names} {len(lines)} names; "
            "expected floats (N,D) and a name for each row"
        )
    rows = {_key(line.split("\t")[0].strip(" ")): row for row, line in enumerate(lines)}
    if not any("/" in name for name in rows):  # backslashes may separate folders
        rows = {**{name.replace("\\", "/"): row for name, row in rows.items()}, **rows}
    return Stored(embeddings, rows, str(names))


def _key(name: str) -> str:
    """What two spellings of an image's name have in common."""
    return stem(one_line(composed(name)))
