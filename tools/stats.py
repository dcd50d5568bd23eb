"""What is in a face set: python -m tools.stats PATH [--png FILE.png] [--json].

Images, identities, images an identity as a histogram (printed, and as PNG), sizes in pixels and
bytes of a sample.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from data.decode import DecodeError, decode_any
from data.faces import detect_format, open_faces
from data.types import FaceSet

EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
SAMPLE = 500


def describe_set(faces: FaceSet) -> dict[str, float]:
    """Counts of images and identities, images an identity, and mean sizes of an even sample of
    SAMPLE images."""
    per_identity = np.bincount(faces.labels, minlength=faces.num_classes)
    sample = np.unique(np.linspace(0, len(faces) - 1, min(SAMPLE, len(faces))).astype(np.int64))
    lengths, shapes = [], []
    for index in sample.tolist():
        encoded = faces.read(index)
        lengths.append(len(encoded))
        try:
            shapes.append(decode_any(encoded).shape[:2])
        except DecodeError as error:
            print(f"not decoded: {faces.describe(index)}: {error}", file=sys.stderr)
    height, width = np.mean(shapes, 0) if shapes else (0.0, 0.0)
    return {
        "images": len(faces),
        "identities": faces.num_classes,
        "identities_without_images": int((per_identity == 0).sum()),
        "images_per_identity_min": int(per_identity.min()),
        "images_per_identity_median": float(np.median(per_identity)),
        "images_per_identity_mean": float(per_identity.mean()),
        "images_per_identity_max": int(per_identity.max()),
        "mean_bytes": float(np.mean(lengths)),
        "mean_height": float(height),
        "mean_width": float(width),
        "sampled": len(sample),
    }


def histogram(faces: FaceSet) -> list[tuple[str, int]]:
    """(range of images, identities with so many), in ranges that grow."""
    per_identity = np.bincount(faces.labels, minlength=faces.num_classes)
    bounds = [0, *EDGES]
    rows = []
    for low, high in zip(bounds, [*EDGES, None], strict=True):
        inside = (per_identity >= low) & (per_identity < high if high else True)
        label = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}–{high - 1}"
        rows.append((label, int(inside.sum())))
    return rows


def plot(rows: list[tuple[str, int]], title: str, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.bar([label for label, _ in rows], [count for _, count in rows], color="tab:blue")
    axes.set_xlabel("images an identity")
    axes.set_ylabel("identities")
    axes.set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--png", help="write the histogram there")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args(argv)
    try:
        form = detect_format(options.path) if options.format == "auto" else options.format
        faces = open_faces(options.path, form, check=False)
        if len(faces) == 0:
            raise ValueError(f"{options.path}: holds no image")
        figures = describe_set(faces)
        rows = histogram(faces)
        if options.png:
            plot(rows, f"{len(faces):,} images of {faces.num_classes:,} identities", options.png)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.path}: {form}")
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):28}{value:{',' if isinstance(value, int) else ',.1f'}}")
    widest = max(count for _, count in rows)
    for label, count in rows:
        print(f"{label:>9} {count:>9,} {'█' * round(40 * count / widest)}")
    if options.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
