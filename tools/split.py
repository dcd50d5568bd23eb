"""Divides a folder of faces into a training set and a test set.

    python -m tools.split FACES --test 0.2              people: nobody is in both sets
    python -m tools.split FACES --test 0.2 --by photo   photos: everybody is in both sets

FACES has one folder per person. FACES_split, or --out, gets `train` and `test`, and from the test
`gallery` and `probe` for `python -m eval identification`. The images are hard links, or copies
where the disk has no links, so the division takes no space.

By people, as a test of a model that will meet strangers: the gallery has one photo of each test
person, and the probes are the others. By photo, as a test of a model for these people alone: the
gallery is the training set, and the probes are the test set. The people of a test have two photos
or more each.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from data.files import check_new, new_folder
from data.formats.folder import FolderSet, open_set
from data.options import CountOrZero, Range
from data.types import Int64
from tools._cli import command

Parts = dict[str, Int64]
"""The images of `train`, `test`, `gallery` and `probe`, by number."""


def split_people(labels: Int64, share: float, rng: np.random.Generator) -> Parts:
    """Divide images with labels int64 (N,) so that no label is in both sets."""
    people, counts = np.unique(labels, return_counts=True)
    able = people[counts > 1]
    wanted = max(2, round(share * len(people)))
    if len(able) < wanted or len(people) - wanted < 2:
        raise ValueError(
            f"{len(people)} people, {len(able)} of them with two images or more, cannot be divided "
            f"into a test of {wanted} such people and a training set of two people or more; "
            "give another --test, or use --by photo"
        )
    chosen = np.isin(labels, rng.choice(able, wanted, replace=False))
    test = np.flatnonzero(chosen)
    _, first = np.unique(labels[test], return_index=True)
    return {
        "train": np.flatnonzero(~chosen),
        "test": test,
        "gallery": test[first],
        "probe": np.delete(test, first),
    }


def split_photos(labels: Int64, share: float, rng: np.random.Generator) -> Parts:
    """Divide the images of each label with two images or more; one image of a label is trained."""
    chosen = np.zeros(len(labels), bool)
    for person in np.unique(labels):
        images = np.flatnonzero(labels == person)
        if len(images) > 1:
            count = min(max(1, round(share * len(images))), len(images) - 1)
            chosen[rng.choice(images, count, replace=False)] = True
    if not chosen.any():
        raise ValueError("no person has two images, so there is nothing to test")
    train, test = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return {"train": train, "test": test, "gallery": train, "probe": test}


def write_parts(faces: FolderSet, parts: Parts, out: Path) -> None:
    """Write OUT/PART/PERSON/IMAGE. `out` appears only when it is complete."""
    with new_folder(out, durable=False) as partial:
        for part, images in parts.items():
            for index in images.tolist():
                source = Path(faces.describe(index))
                target = partial / part / source.parent.name / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except OSError:
                    shutil.copyfile(source, target)


def run(
    faces: Path,
    *,
    test: Annotated[float, Range(above=0, below=1)],
    by: Literal["person", "photo"] = "person",
    out: Path | None = None,
    seed: CountOrZero = 0,
) -> dict[str, int]:
    """Divide the images of one folder.

    faces: folder of aligned faces, with one folder per person.
    test: share of the people, or of each person's photos, for the test.
    by: divide the people, or the photos of each person.
    out: folder for the sets (default: FACES_split).
    seed: seed of the drawing; another seed draws another test.
    """
    target = faces.with_name(f"{faces.resolve().name}_split") if out is None else out
    check_new(target)
    source = open_set(str(faces))
    divide = split_people if by == "person" else split_photos
    try:
        parts = divide(source.labels, test, np.random.default_rng(seed))
    except ValueError as error:
        raise ValueError(f"{faces}: {error}") from None
    write_parts(source, parts, target)
    counts = {part: len(images) for part, images in parts.items()}
    for part, images in parts.items():
        print(f"{target / part}: {counts[part]} images of {_people(source, images)} people")
    return counts


def _people(faces: FolderSet, images: Int64) -> int:
    return len(np.unique(faces.labels[images]))


main = command(run)
