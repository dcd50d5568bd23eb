"""LFW's View 1 experiment: a record file of a set of faces with LFW's View 1 training people beside
it, and its test.

    python -m scripts.experiments.view1_faces FACES OUT [--tuning]

FACES holds train.rec, lfw_112.zip, and in protocol/ LFW's peopleDevTrain.txt, pairsDevTest.txt and
pairsDevTrain.txt. Written are OUT/train.rec and OUT/pairs.txt: the pairs of pairsDevTest, none of
whose people is in the set, genuine and impostor pairs in turn. The official list has all genuine
pairs first, which gives consecutive folds of one kind each.

--tuning: the same for choosing settings: the pairs of pairsDevTrain, and train.rec with the View 1
training people who are not in them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from data.faces import open_faces
from data.files import atomic_write
from data.formats._packed import PackedSet
from data.formats.concat import ConcatSet
from data.types import FaceSet
from data.writers.records import write_records


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


def alternating(pairs: Path) -> str:
    """The lines of an LFW pair list, genuine (three fields) and impostor pairs (four) in turn, its
    count line first."""
    count, *lines = pairs.read_text().splitlines()
    genuine, impostors = (
        [line for line in lines if len(line.split("\t")) == fields] for fields in (3, 4)
    )
    if len(genuine) != int(count) or len(impostors) != int(count):
        raise ValueError(
            f"{pairs}: says {count} pairs of each kind, lists {len(genuine)} and {len(impostors)}"
        )
    taken = (line for pair in zip(genuine, impostors, strict=True) for line in pair)
    return "\n".join([count, *taken]) + "\n"


def people_in_pairs(pairs: Path) -> set[str]:
    """Everybody whom an LFW pair list names."""
    lines = [line.split("\t") for line in pairs.read_text().splitlines()[1:]]
    return {
        name for line in lines for name in ({line[0]} if len(line) == 3 else {line[0], line[2]})
    }


def write_view1(faces: Path, out: Path, *, tuning: bool = False) -> None:
    """train.rec and pairs.txt in the folder `out` from the set in `faces`; of the people to tune by
    where asked."""
    lfw = open_faces(faces / "lfw_112.zip")
    if not isinstance(lfw, PackedSet) or lfw.names is None:
        raise ValueError(f"{faces / 'lfw_112.zip'}: expected a zip with a folder for each person")
    numbers = {name: number for number, name in enumerate(lfw.names)}
    pairs = faces / "protocol" / ("pairsDevTrain.txt" if tuning else "pairsDevTest.txt")
    tested = people_in_pairs(pairs)
    people = [
        person
        for person in people_of(faces / "protocol" / "peopleDevTrain.txt")
        if person not in tested
    ]
    kept = SomePeople(lfw, np.array([numbers[name] for name in people]))
    both = ConcatSet([open_faces(faces / "train.rec"), kept])
    out.mkdir(parents=True, exist_ok=True)
    write_records(both, str(out / "train.rec"), size=(112, 112), progress=lambda done: None)
    with atomic_write(out / "pairs.txt", "w") as file:
        file.write(alternating(pairs))
    print(f"{out / 'train.rec'}: {len(both)} images of {both.num_classes} people")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faces", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--tuning", action="store_true", help="the set and pairs to choose settings by"
    )
    args = parser.parse_args()
    write_view1(args.faces, args.out, tuning=args.tuning)


if __name__ == "__main__":
    main()
