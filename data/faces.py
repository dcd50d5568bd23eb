"""Opening a face set of any format: one file in data/formats/ is one format."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from data.parts import find_part, part_names
from data.types import FaceSet

GENERATED, JOINED = "synthetic:", "concat:"  # what a line begins with that is no path
log = logging.getLogger(__name__)
FORMATS = "data.formats"


def detect_format(path: str | Path) -> str:
    """Name of the one format whose detect() takes this path."""
    text = str(path)
    found = [name for name in part_names(FORMATS) if find_part(FORMATS, name).detect(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{text}: could be {' or '.join(found)}; name the format to take")
    if ":" not in text and not Path(text).exists():
        raise FileNotFoundError(f"{text}: no such file or folder")
    raise ValueError(f"{text}: holds none of the known formats ({', '.join(part_names(FORMATS))})")


def open_faces(path: str | Path, format: str = "auto", *, check: bool = True) -> FaceSet:
    """A FaceSet from a path (or from a line such as "synthetic:identities=200,images=20").

    format: a name in data/formats/, or "auto" to look. check: refuse sets that cannot train a
    classifier (no image, a label outside [0, num_classes), one identity only); the tools open
    without it.
    """
    name = detect_format(path) if format == "auto" else format
    faces: FaceSet = find_part(FORMATS, name).open_set(str(path))
    log.info(
        "%s: %s format%s, %d images, %d identities",
        path,
        name,
        " (detected)" if format == "auto" else "",
        len(faces),
        faces.num_classes,
    )
    if check:
        check_labels(faces.labels, faces.num_classes, str(path))
    return faces


def below_root(path: str, root: str | None) -> str:
    """A set's path, and each path of `concat:PATH;PATH`, below `root`; generators and absolute
    paths stay as they are.

    root None: as it is.
    """
    if path.startswith(JOINED):
        return JOINED + ";".join(
            below_root(part, root) for part in path.removeprefix(JOINED).split(";")
        )
    if root is None or path.startswith(GENERATED):
        return path
    return str(Path(root) / path)


def missing_path(path: str) -> str | None:
    """The first file or folder that a set's line names and that is not there."""
    if path.startswith(JOINED):
        found = (missing_path(part) for part in path.removeprefix(JOINED).split(";"))
        return next((part for part in found if part), None)
    return None if path.startswith(GENERATED) or Path(path).exists() else path


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """ValueError unless labels (N,) are integers in [0, num_classes) of at least two identities."""
    if len(labels) == 0:
        raise ValueError(f"{where}: holds no image")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels are {labels.dtype}, expected integers")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"{where}: image {int(labels.argmin())} has the negative label {low}")
    if high >= num_classes:
        raise ValueError(
            f"{where}: image {int(labels.argmax())} has label {high}, but the set declares {num_classes} identities "
            f"(labels 0…{num_classes - 1}); correct `property` or the labels"
        )
    if low == high:
        raise ValueError(
            f"{where}: all {len(labels)} images have label {low}; training needs two identities or more"
        )
