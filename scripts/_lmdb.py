"""Writes the LMDB layout of a face set: one value per image, and a list of keys with labels."""

from pathlib import Path

import lmdb

from data.types import FaceSet


def write_lmdb(faces: FaceSet, folder: Path) -> None:
    """Write data.mdb and train_kv.txt into the folder."""
    store = lmdb.open(str(folder), map_size=1 << 40, sync=False)
    with store, store.begin(write=True) as transaction:
        items = ((f"{index:09d}".encode(), faces.read(index)) for index in range(len(faces)))
        transaction.cursor().putmulti(items, append=True)
    with open(folder / "train_kv.txt", "w") as file:
        labels = enumerate(faces.labels.tolist())
        file.writelines(f"{index:09d} {label}\n" for index, label in labels)
