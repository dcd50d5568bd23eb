"""Some images of a set of any format: `subset:FILE.npy;PATH`. FILE.npy is an index list.

The list has row numbers (M,), or row numbers and new labels (M, 2), as whole numbers. `data.subset`
in a config names such a list too.
"""

from data.arrays import read_npy
from data.faces import CHOSEN, open_faces
from data.subset import SubsetSet, choose


def detect(path: str) -> bool:
    return path.startswith(CHOSEN)


def open_set(path: str) -> SubsetSet:
    """Opens the set by its own detected format."""
    file, _, line = path.removeprefix(CHOSEN).partition(";")
    if not file or not line:
        raise ValueError(f"{path}: expected an index list and a set, as {CHOSEN}FILE.npy;PATH")
    return choose(open_faces(line, check=False), read_npy(file), file)
