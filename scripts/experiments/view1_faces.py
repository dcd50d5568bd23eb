"""The record file of LFW's View 1 experiment: a set of faces, and the View 1 training people of LFW beside it.

    python -m scripts.experiments.view1_faces FOLDER OUT.rec

FOLDER holds train.rec, lfw_112.zip and protocol/peopleDevTrain.txt. Nobody in OUT.rec is in protocol/pairsDevTest.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from data.faces import open_faces
from data.formats.concat import ConcatSet
from data.packed import PackedSet
from data.record_writer import write_records
from data.types import FaceSet


class SomePeople:
    """The images of the identities `kept` (K,) of a FaceSet, numbered 0…K-1 in that order."""

    def __init__(self, faces: FaceSet, kept: np.ndarray) -> None:
        number = np.full(faces.num_classes, -1)
        number[kept] = np.arange(len(kept))
        self.faces = faces
        self.images = np.flatnonzero(number[faces.labels] >= 0)
        self.labels = number[faces.labels[self.images]]
        self.num_classes = len(kept)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self.faces.read(int(self.images[index]))

    def describe(self, index: int) -> str:
        return self.faces.describe(int(self.images[index]))


def people_of(path: Path) -> list[str]:
    """Names in an LFW people list, whose first line is their number."""
    count, *lines = path.read_text().splitlines()
    names = [line.split("\t")[0] for line in lines if line]
    if len(names) != int(count):
        raise ValueError(f"{path}: says {count} people, lists {len(names)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    lfw = open_faces(args.folder / "lfw_112.zip")
    if not isinstance(lfw, PackedSet) or lfw.names is None:
        raise ValueError(f"{args.folder / 'lfw_112.zip'}: expected a zip with a folder for each person")
    numbers = {name: number for number, name in enumerate(lfw.names)}
    people = people_of(args.folder / "protocol" / "peopleDevTrain.txt")
    kept = SomePeople(lfw, np.array([numbers[name] for name in people]))
    faces = ConcatSet([open_faces(args.folder / "train.rec"), kept])
    write_records(faces, str(args.out), size=(112, 112), progress=lambda done: None)
    print(f"{args.out}: {len(faces)} images of {faces.num_classes} people")


if __name__ == "__main__":
    main()
