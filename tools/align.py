"""Ordinary photos to aligned crops: python -m tools.align PHOTOS OUT [--size 112] [--largest]
[--json]

PHOTOS holds a folder an identity (or images directly); OUT gets the same tree, one JPEG a photo, on
the five-point template of ArcFace. Photos without a face, or with several (unless --largest), are
listed in OUT/align_report.tsv and left out. Photos whose crop is there already are not done again.

The detector is MTCNN from facenet-pytorch 2.6.0, whose wheel carries its weights (2 MB). Its pins
are older than the releases this project runs on, so install it without them: pip install --no-deps
facenet-pytorch==2.6.0 requests tqdm
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data.align import align
from data.decode import decode_any
from data.files import atomic_write
from data.images import SUFFIXES
from tools._progress import bar

JPEG_QUALITY = 95
REPORT = "align_report.tsv"
# uint8 (H,W,3) RGB -> boxes (F,4) as x1 y1 x2 y2, landmarks (F,5,2)
Detector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def mtcnn() -> Detector:
    """The detector, on CPU."""
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
) -> Counter:
    """Writes OUT and its report; counts of aligned, kept (done before), no_face, several,
    unreadable."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{photos}: holds no photo ({', '.join(SUFFIXES)})")
    counts: Counter = Counter()
    report = []
    with bar(len(found), "aligning") as advance:
        for photo in found:
            name = photo.relative_to(photos)
            target = out / f"{name}.jpg" if name.suffix.lower() != ".jpg" else out / name
            outcome, detail = "kept", ""
            if not target.exists():
                outcome, detail = _align_one(photo, target, detect, size, largest)
            counts[outcome] += 1
            if outcome not in ("aligned", "kept"):
                report.append(f"{name}\t{outcome}\t{detail}\n")
            advance(1)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / REPORT, "w") as file:
        file.writelines(["photo\toutcome\tdetail\n", *report])
    return counts


def _align_one(
    photo: Path, target: Path, detect: Detector, size: int, largest: bool
) -> tuple[str, str]:
    try:
        image = decode_any(photo.read_bytes())
    except ValueError as error:
        return "unreadable", str(error)
    boxes, landmarks = detect(image)
    if len(boxes) == 0:
        return "no_face", ""
    if len(boxes) > 1 and not largest:
        return "several", f"{len(boxes)} faces; --largest takes the largest"
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    crop = align(image, landmarks[int(areas.argmax())], size)
    _, encoded = cv2.imencode(".jpg", crop[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, durable=False) as file:
        file.write(encoded.tobytes())
    return "aligned", ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("out")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--largest", action="store_true", help="of several faces take the largest")
    parser.add_argument("--json", action="store_true", help="print counts as one JSON line last")
    options = parser.parse_args(argv)
    photos, out = Path(options.photos), Path(options.out)
    try:
        if not photos.is_dir():
            raise FileNotFoundError(f"{photos}: no such folder")
        counts = align_folder(photos, out, mtcnn(), size=options.size, largest=options.largest)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(
        ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        + f"; details in {out / REPORT}"
    )
    if options.json:
        print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
