"""Counts what is in a face set: images, identities, images per identity, image sizes.

    python -m tools.stats FACES

It prints a histogram of the images per identity, and draws it if --png is given. Sizes in pixels
and bytes are means of 500 images, spread evenly over the set.
"""

import sys

import numpy as np

from data.faces import detect_format, open_faces
from data.read_image import BadImage, read_encoded, read_pixels
from data.text import one_line
from data.types import FaceSet
from tools._cli import command

EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
SAMPLE = 500


def describe_set(faces: FaceSet) -> dict[str, float]:
    """Numbers of images and identities, images per identity, mean sizes of a sample."""
    per_identity = np.bincount(faces.labels, minlength=faces.num_classes)
    sample = np.unique(np.linspace(0, len(faces) - 1, min(SAMPLE, len(faces))).astype(np.int64))
    lengths, shapes = [], []
    for index in sample.tolist():
        try:
            lengths.append(len(read_encoded(faces, index)))
            shapes.append(read_pixels(faces, index).shape[:2])
        except BadImage as error:
            print(one_line(f"not decoded: {error}"), file=sys.stderr)
    height, width = np.mean(shapes, 0) if shapes else (0.0, 0.0)
    return {
        "images": len(faces),
        "identities": faces.num_classes,
        "identities_without_images": int((per_identity == 0).sum()),
        "images_per_identity_min": int(per_identity.min()),
        "images_per_identity_median": float(np.median(per_identity)),
        "images_per_identity_mean": float(per_identity.mean()),
        "images_per_identity_max": int(per_identity.max()),
        "mean_bytes": float(np.mean(lengths)) if lengths else 0.0,
        "mean_height": float(height),
        "mean_width": float(width),
        "sampled": len(sample),
    }


def histogram(faces: FaceSet) -> list[tuple[str, int]]:
    """(range of image counts, number of identities in it), in ranges that widen."""
    per_identity = np.bincount(faces.labels, minlength=faces.num_classes)
    rows = []
    for low, high in zip([0, *EDGES], [*EDGES, None], strict=True):
        inside = (per_identity >= low) & (per_identity < high if high else True)
        label = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}–{high - 1}"
        rows.append((label, int(inside.sum())))
    return rows


def plot(rows: list[tuple[str, int]], title: str, path: str) -> None:
    """Draw the histogram into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="tight")
    axes = figure.subplots()
    axes.bar([label for label, _ in rows], [count for _, count in rows], color="tab:blue")
    axes.set(xlabel="images per identity", ylabel="identities", title=title)
    figure.savefig(path, dpi=120)


def run(faces: str, *, format: str = "auto", png: str | None = None) -> dict[str, float]:
    """Describe one face set.

    faces: any face set.
    format: format of FACES, needed only if FACES could be read in several formats.
    png: file to draw the histogram into.
    """
    form = detect_format(faces) if format == "auto" else format
    opened = open_faces(faces, form, check=False)
    if len(opened) == 0:
        raise ValueError(f"{faces}: holds no image")
    figures, rows = describe_set(opened), histogram(opened)
    if png:
        plot(rows, f"{len(opened):,} images of {opened.num_classes:,} identities", png)
    print(f"{faces}: {form}")
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):28}{value:{',' if isinstance(value, int) else ',.1f'}}")
    widest = max(count for _, count in rows)
    for label, count in rows:
        print(f"{label:>9} {count:>9,} {'█' * round(40 * count / widest)}")
    return figures


main = command(run)
