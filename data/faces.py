"""Opens a face set of any format: each file in data/formats/ is one format."""

import logging
from pathlib import Path

import numpy as np

from data.arrays import read_npy
from data.parts import find_part, part_names
from data.subset import choose
from data.subset import renumber as renumbered
from data.types import FaceSet

# A line that begins with one of these is not a path.
GENERATED, JOINED, CHOSEN = "synthetic:", "concat:", "subset:"
FORMATS = "data.formats"
log = logging.getLogger(__name__)


def detect_format(path: str | Path) -> str:
    """Name of the one format whose detect() accepts this path."""
    text = str(path)
    for begin in (GENERATED, JOINED, CHOSEN):
        if text.startswith(begin):
            return begin.rstrip(":")
    names = part_names(FORMATS)
    found = [name for name in names if find_part(FORMATS, name).detect(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{text}: could be {' or '.join(found)}; name the format")
    if ":" not in text and not Path(text).exists():
        raise FileNotFoundError(f"{text}: no such file or folder")
    raise ValueError(f"{text}: is in none of the known formats ({', '.join(names)})")


def open_faces(
    path: str | Path,
    format: str = "auto",
    *,
    check: bool = True,
    subset: str | None = None,
    renumber: bool = False,
) -> FaceSet:
    """A FaceSet from a path, or from a line such as "synthetic:identities=200,images=20".

    format: a name in data/formats/, or "auto" to detect it.
    check: refuse a set that cannot train a classifier because it has no image, a label outside
        [0, num_classes) or only one identity, and log how many identities have no image. The tools
        open sets without this check.
    subset: an index list (.npy) of the images to use.
    renumber: number the identities that have images 0, 1, ….
    """
    name = detect_format(path) if format == "auto" else format
    faces: FaceSet = find_part(FORMATS, name).open_set(str(path))
    images, identities = len(faces), faces.num_classes
    how = "detected" if format == "auto" else "given"
    log.info("%s: format %s (%s), %d images, %d identities", path, name, how, images, identities)
    if subset is not None:
        faces = choose(faces, read_npy(subset), subset)
        log.info("%s: %d of these images", subset, len(faces))
    if renumber:
        faces = renumbered(faces, str(path))
    if check:
        check_labels(faces.labels, faces.num_classes, str(path))
        _tell_gaps(faces, str(path))
    return faces


def _tell_gaps(faces: FaceSet, where: str) -> None:
    held = np.count_nonzero(np.bincount(faces.labels, minlength=faces.num_classes))
    if held < faces.num_classes:
        log.info(
            "%s: %s of %s identities have images, and each of the others has a class center too; "
            "data.renumber=true numbers those that have images 0…%s",
            where,
            f"{held:,}",
            f"{faces.num_classes:,}",
            f"{held - 1:,}",
        )


def resolve_path(path: str, root: str | None) -> str:
    """The path of a set below `root`, or the path itself if there is no root.

    In `concat:PATH;PATH` and `subset:FILE.npy;PATH` each path is resolved. Generators and absolute
    paths stay as they are.
    """
    for begin in (JOINED, CHOSEN):
        if path.startswith(begin):
            paths = path.removeprefix(begin).split(";")
            return begin + ";".join(resolve_path(one, root) for one in paths)
    if root is None or path.startswith(GENERATED):
        return path
    return str(Path(root) / path)


def find_missing_path(path: str) -> str | None:
    """The first file or folder that a set's line names and that does not exist."""
    for begin in (JOINED, CHOSEN):
        if path.startswith(begin):
            missing = map(find_missing_path, path.removeprefix(begin).split(";"))
            return next(filter(None, missing), None)
    return None if path.startswith(GENERATED) or Path(path).exists() else path


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """ValueError unless labels (N,) are integers in [0, num_classes) of two identities or more."""
    if len(labels) == 0:
        raise ValueError(f"{where}: holds no image")
    check_range(labels, num_classes, where)
    if (labels == labels[0]).all():
        raise ValueError(
            f"{where}: all {len(labels)} images have label {labels[0]}; "
            "training needs two identities or more"
        )


def check_range(labels: np.ndarray, num_classes: int, where: str) -> None:
    """ValueError unless labels (N,) are integers in [0, num_classes)."""
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels are {labels.dtype}, expected integers")
    low, high = int(labels.min(initial=0)), int(labels.max(initial=-1))
    if low < 0:
        raise ValueError(f"{where}: image {int(labels.argmin())} has the negative label {low}")
    if high >= num_classes:
        raise ValueError(
            f"{where}: image {int(labels.argmax())} has label {high}, but the set declares "
            f"{num_classes} identities (labels 0…{num_classes - 1}); correct `property` or the "
            "labels, or choose data.renumber=true"
        )
