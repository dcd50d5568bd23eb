"""Aligns ordinary photos: each becomes a crop that fits the five-point template of ArcFace.

    python -m tools.align PHOTOS OUT

OUT gets the folders of PHOTOS, with one JPEG per photo. A photo is turned as its EXIF entry says.
OUT/align_report.tsv lists the photos that were left out: those without a face, those with several
(unless --largest is given), those that cannot be read, and files that are no photos. A photo whose
crop exists already is not aligned again.

OUT/landmarks.npy gets the landmarks of the crops, for a backbone that needs them. Those of crops of
an earlier version are missing there, and `python -m tools.landmarks OUT` finds them.

HEIC photos, as telephones take them, need one more package: pip install -e '.[heic]'
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from data.align import align
from data.decode import encode_jpeg
from data.detect import Detector, in_threads, load_detector
from data.files import atomic_write, is_special
from data.images import FileImages
from data.landmarks import Landmarks, in_crop, landmarks_of, write_landmarks
from data.names import LANDMARKS, is_hidden
from data.options import Count
from data.photos import PHOTO_SUFFIXES, HeicUnavailable, read_photo
from data.text import csv_cell
from tools._cli import Failed, command
from tools._progress import progress_bar

REPORT = "align_report.tsv"


def align_folder(
    photos: Path,
    out: Path,
    load: Callable[[], Detector] = load_detector,
    *,
    size: int = 112,
    largest: bool = False,
) -> Counter[str]:
    """Write the crops and the report into `out`.

    load: makes the detector of one thread. Returns how many photos were aligned, kept (aligned
    before), no_face, several, unreadable and heic (pillow-heif is missing), and how many files are
    other, which is no photo.
    """
    found, other = list_photos(photos)
    if not found:
        raise ValueError(f"{photos}: holds no photo ({', '.join(PHOTO_SUFFIXES)})")
    crops = crop_names(found)

    def one(detect: Detector, photo: Path) -> tuple[str, str, Landmarks | None]:
        target = out / crops[photo]
        if target.exists():
            return "kept", "", None
        return _align_one(photos / photo, target, detect, size, largest)

    landmarks = _known_landmarks(out)
    counts = Counter({"other": len(other)} if other else {})
    rows = [(str(name), "other", "no photo by its name") for name in other]
    with progress_bar(len(found), "aligning") as advance:
        for photo, (outcome, detail, points) in zip(
            found, in_threads(one, found, load), strict=True
        ):
            counts[outcome] += 1
            if points is not None:
                landmarks[str(crops[photo])] = points
            if outcome not in ("aligned", "kept"):
                rows.append((str(photo), outcome, detail))
            advance(1)
    out.mkdir(parents=True, exist_ok=True)
    _write_landmarks(out, landmarks)
    with atomic_write(out / REPORT, "w") as file:
        file.write("photo\toutcome\tdetail\n")
        file.writelines("\t".join(str(csv_cell(cell)) for cell in row) + "\n" for row in rows)
    return counts


def list_photos(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photos below a folder, and its other files, as paths in the folder.

    Hidden files, such as those of the system, are neither.
    """
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = [path.relative_to(folder) for path in paths if not is_special(path)]
    seen = [name for name in names if not any(map(is_hidden, name.parts))]
    photos = [name for name in seen if name.suffix.lower() in PHOTO_SUFFIXES]
    return photos, [name for name in seen if name.suffix.lower() not in PHOTO_SUFFIXES]


def crop_names(photos: list[Path]) -> dict[Path, Path]:
    """The name of each photo's crop: `ANNA/1.heic` becomes `ANNA/1.jpg`.

    If a folder has several photos `1`, those that are not `1.jpg` become `1_heic.jpg`, `1_png.jpg`.
    """
    # Some file systems do not distinguish capital letters, so names are compared without.
    alike = Counter(str(photo.with_suffix("")).lower() for photo in photos)
    names, taken = {}, set()
    for photo in sorted(photos, key=lambda photo: photo.suffix != ".jpg"):
        name = photo.with_suffix(".jpg")
        if alike[str(photo.with_suffix("")).lower()] > 1 and photo.suffix != ".jpg":
            name = photo.with_name(f"{photo.stem}_{photo.suffix[1:]}.jpg")
        while str(name).lower() in taken:
            name = name.with_name(f"{name.stem}_.jpg")
        taken.add(str(name).lower())
        names[photo] = name
    return names


def _align_one(
    photo: Path, target: Path, detect: Detector, size: int, largest: bool
) -> tuple[str, str, Landmarks | None]:
    """Write one crop. Returns the outcome in one word, details for the report, and landmarks."""
    try:
        image = read_photo(photo)
    except HeicUnavailable as error:
        return "heic", str(error), None
    except (ValueError, OSError) as error:
        return "unreadable", str(error), None
    faces = detect(image)
    if not faces:
        return "no_face", "", None
    if len(faces) > 1 and not largest:
        return "several", f"{len(faces)} faces; --largest uses the largest", None
    crop = align(image, faces[0].landmarks, size)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, durable=False) as file:
        file.write(encode_jpeg(crop))
    return "aligned", "", in_crop(faces[0].landmarks, size)


def _known_landmarks(out: Path) -> dict[str, Landmarks]:
    """The landmarks that an earlier run wrote, by the names of the crops in OUT."""
    crops = _crops(out)
    known = landmarks_of(crops)
    if known is None:
        return {}
    return {
        str(path.relative_to(out)): points for path, points in zip(crops.paths, known, strict=True)
    }


def _write_landmarks(out: Path, known: Mapping[str, Landmarks]) -> None:
    """Write the landmarks of all crops in OUT, NaN where none are known."""
    crops = _crops(out)
    missing = np.full((5, 2), np.nan, np.float32)
    points = [known.get(str(path.relative_to(out)), missing) for path in crops.paths]
    write_landmarks(out / LANDMARKS, crops, np.stack(points or [missing])[: len(crops)])


def _crops(out: Path) -> FileImages:
    return FileImages(sorted(out.rglob("*.jpg")), out)


def run(photos: Path, out: Path, *, size: Count = 112, largest: bool = False) -> Counter[str]:
    """Align all photos of a folder.

    photos: folder of photos, with one folder per person.
    out: folder for the crops.
    size: side of the square crops in pixels.
    largest: if a photo shows several faces, use the largest one.
    """
    if not photos.is_dir():
        raise FileNotFoundError(f"{photos}: no such folder")
    if out.resolve().is_relative_to(photos.resolve()):
        raise ValueError(f"{out}: is inside {photos}; give a folder outside it for the crops")
    counts = align_folder(photos, out, size=size, largest=largest)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f"{shown}; details in {out / REPORT}")
    if counts["heic"]:
        print("HEIC photos need pillow-heif: pip install -e '.[heic]', then repeat this command")
    if not counts["aligned"] + counts["kept"]:
        raise Failed(f"{photos}: none of the photos gave a crop", counts)
    return counts


main = command(run)
