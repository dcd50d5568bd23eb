"""Makes the record file and the test pairs of LFW's View 1 experiment.

    python -m scripts.experiments.view1_faces FACES OUT

FACES holds train.rec, lfw_112.zip, and in protocol/ LFW's peopleDevTrain.txt, pairsDevTest.txt and
pairsDevTrain.txt. OUT/train.rec gets the people of FACES/train.rec and those of View 1's training
list. OUT/pairs.txt gets the pairs of pairsDevTest, whose people are not in the set. Genuine and
impostor pairs alternate there, because the official list begins with all genuine pairs, so that
consecutive folds would have one kind each.

With --tuning, the pairs are those of pairsDevTrain, and the people in them are left out of the set.
Settings are chosen on these pairs.
"""

from pathlib import Path

import numpy as np

from data.faces import open_faces
from data.files import atomic_write
from data.formats._packed import PackedSet
from data.formats.concat import ConcatSet
from data.writers.records import write_records
from tools._cli import command


def some_people(faces: PackedSet, kept: np.ndarray) -> PackedSet:
    """The images of the identities `kept` (K,) of a set, numbered 0…K-1 in that order."""
    number = np.full(faces.num_classes, -1)
    number[kept] = np.arange(len(kept))
    columns = {**faces.columns, "labels": number[faces.labels]}
    names = columns.pop("names")[kept]
    chosen = columns["labels"] >= 0
    images = {key: column[chosen] for key, column in columns.items()}
    return PackedSet(faces.shards, {**images, "names": names}, faces.unwrap)


def people_of(path: Path) -> list[str]:
    """Names in an LFW people list, whose first line is their number."""
    count, *lines = path.read_text().splitlines()
    names = [line.split("\t")[0] for line in lines if line]
    if len(names) != int(count):
        raise ValueError(f"{path}: says {count} people, lists {len(names)}")
    return names


def alternating(pairs: Path) -> str:
    """The lines of an LFW pair list: its count, then genuine and impostor pairs in turn.

    Genuine pairs have three fields, impostor pairs four.
    """
    count, *lines = pairs.read_text().splitlines()
    genuine = [line for line in lines if line.count("\t") == 2]
    impostors = [line for line in lines if line.count("\t") == 3]
    if {len(genuine), len(impostors)} != {int(count)}:
        listed = f"lists {len(genuine)} and {len(impostors)}"
        raise ValueError(f"{pairs}: says {count} pairs of each kind, {listed}")
    taken = (line for pair in zip(genuine, impostors, strict=True) for line in pair)
    return "\n".join([count, *taken]) + "\n"


def people_in_pairs(pairs: Path) -> set[str]:
    """The names of all people in an LFW pair list."""
    lines = [line.split("\t") for line in pairs.read_text().splitlines()[1:]]
    return {line[0] for line in lines} | {line[2] for line in lines if len(line) == 4}


def write_view1(faces: Path, out: Path, *, tuning: bool = False) -> None:
    """Write train.rec and pairs.txt of one set.

    faces: folder of the sets and lists.
    out: folder to write into.
    tuning: make the set and the pairs on which settings are chosen.
    """
    lfw = open_faces(faces / "lfw_112.zip")
    if not isinstance(lfw, PackedSet) or lfw.names is None:
        raise ValueError(f"{faces / 'lfw_112.zip'}: expected a zip with a folder for each person")
    numbers = {name: number for number, name in enumerate(lfw.names)}
    pairs = faces / "protocol" / ("pairsDevTrain.txt" if tuning else "pairsDevTest.txt")
    tested = people_in_pairs(pairs)
    listed = people_of(faces / "protocol" / "peopleDevTrain.txt")
    kept = some_people(lfw, np.array([numbers[name] for name in listed if name not in tested]))
    both = ConcatSet([open_faces(faces / "train.rec"), kept])
    out.mkdir(parents=True, exist_ok=True)
    write_records(both, str(out / "train.rec"), size=(112, 112), progress=lambda done: None)
    with atomic_write(out / "pairs.txt", "w") as file:
        file.write(alternating(pairs))
    print(f"{out / 'train.rec'}: {len(both)} images of {both.num_classes} people")


main = command(write_view1)
