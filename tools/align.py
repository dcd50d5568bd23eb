"""Aligns ordinary photos: each becomes a crop that fits the five-point template of ArcFace.

    python -m tools.align PHOTOS OUT

OUT gets the folders of PHOTOS, with one JPEG per photo. OUT/align_report.tsv lists the photos that
were left out: those without a face, and those with several (unless --largest is given). A photo
whose crop exists already is not aligned again.

The detector is MTCNN from facenet-pytorch 2.6.0, whose wheel contains the weights (2 MB). The
package pins older releases than this project runs on, so install it without its dependencies:

    pip install --no-deps facenet-pytorch==2.6.0 requests tqdm
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.align import align
from data.decode import decode_any, encode_jpeg
from data.files import atomic_write, is_special, read_file
from data.images import SUFFIXES
from data.limits import MOST_IMAGE_BYTES
from data.options import Count
from data.text import csv_cell
from tools._cli import command
from tools._progress import progress_bar

REPORT = "align_report.tsv"
# uint8 (H,W,3) RGB -> boxes (F,4) as x1 y1 x2 y2, landmarks (F,5,2)
Detector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def mtcnn() -> Detector:
    """The detector, on the CPU."""
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        raise ValueError(
            "the detector is missing: pip install --no-deps facenet-pytorch==2.6.0 requests tqdm"
        ) from None
    network = MTCNN(keep_all=True, select_largest=True, device="cpu")

    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, _, landmarks = network.detect(image, landmarks=True)
        if boxes is None:
            return np.zeros((0, 4)), np.zeros((0, 5, 2))
        return np.asarray(boxes, np.float64), np.asarray(landmarks, np.float64)

    return detect


def align_folder(
    photos: Path, out: Path, detect: Detector, *, size: int = 112, largest: bool = False
) -> Counter[str]:
    """Write the crops and the report into `out`.

    Returns how many photos were aligned, kept (aligned before), no_face, several and unreadable.
    """
    named = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = [path for path in named if not is_special(path)]
    if not found:
        raise ValueError(f"{photos}: holds no photo ({', '.join(SUFFIXES)})")
    counts: Counter[str] = Counter()
    report = []
    with progress_bar(len(found), "aligning") as advance:
        for photo in found:
            name = photo.relative_to(photos)
            target = out / name if name.suffix.lower() == ".jpg" else out / f"{name}.jpg"
            outcome, detail = "kept", ""
            if not target.exists():
                outcome, detail = _align_one(photo, target, detect, size, largest)
            counts[outcome] += 1
            if outcome not in ("aligned", "kept"):
                report.append(f"{csv_cell(str(name))}\t{outcome}\t{csv_cell(detail)}\n")
            advance(1)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / REPORT, "w") as file:
        file.writelines(["photo\toutcome\tdetail\n", *report])
    return counts


def _align_one(
    photo: Path, target: Path, detect: Detector, size: int, largest: bool
) -> tuple[str, str]:
    """Write one crop. Returns the outcome in one word, and details for the report."""
    try:
        image = decode_any(read_file(photo, MOST_IMAGE_BYTES))
    except ValueError as error:
        return "unreadable", str(error)
    boxes, landmarks = detect(image)
    if len(boxes) == 0:
        return "no_face", ""
    if len(boxes) > 1 and not largest:
        return "several", f"{len(boxes)} faces; --largest uses the largest"
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    crop = align(image, landmarks[int(areas.argmax())], size)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, durable=False) as file:
        file.write(encode_jpeg(crop))
    return "aligned", ""


def run(photos: Path, out: Path, *, size: Count = 112, largest: bool = False) -> Counter[str]:
    """Align all photos of a folder.

    photos: folder of photos, with one folder per person.
    out: folder for the crops.
    size: side of the square crops in pixels.
    largest: if a photo shows several faces, use the largest one.
    """
    if not photos.is_dir():
        raise FileNotFoundError(f"{photos}: no such folder")
    counts = align_folder(photos, out, mtcnn(), size=size, largest=largest)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f"{shown}; details in {out / REPORT}")
    return counts


main = command(run)
