"""A gallery of faces, with an index beside it that is used again as long as nothing has changed.

The index is a folder with five files:

    index.json      what it was made from: model, options, and a digest of the photos' names, sizes
                    and times
    vectors.npy     embeddings float32 (G,D) of length 1, one per face
    vectors.txt     the photo of each, as a path in the gallery
    places.npy      where the face lies in the photo: float64 (G,16)
    left_out.txt    photos without a face in the index, and below each of them why

Embeddings are biometric data like the photos.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from data.arrays import read_npy
from data.files import atomic_write
from data.text import one_line
from eval.extract import extract
from tools._faces import Align, FaceImages, FaceIn, counted, find_all_faces
from tools._kept import begin, read_lines, write_lines, write_settings
from tools._progress import progress_bar
from tools._recognizer import Recognizer
from tools.align import list_photos

SETTINGS, VECTORS, NAMES, PLACES, LEFT_OUT = (
    "index.json",
    "vectors.npy",
    "vectors.txt",
    "places.npy",
    "left_out.txt",
)
BEGUN = (f"{VECTORS}.part", f"{VECTORS}.position.json")
VERSION = 1
LeftOut = list[tuple[str, str]]
"""Photos, and why they are left out."""


@dataclass(frozen=True)
class Gallery:
    """Known faces.

    root: folder of the photos. photos: path of each face's photo in it. places: float64 (G,16), see
    `_place`. vectors: float32 (G,D) of length 1, perhaps memory-mapped. left_out: photos that gave
    no face.
    """

    root: Path
    photos: Sequence[str]
    places: np.ndarray
    vectors: np.ndarray
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.photos)

    def face(self, row: int) -> FaceIn:
        """The face of a row of `vectors`."""
        return _face(self.root / self.photos[row], self.places[row])

    @cached_property
    def names(self) -> list[str]:
        """The person of each face: the folder in the gallery, or else the photo without suffix."""
        return [_person(photo) for photo in self.photos]

    @cached_property
    def people(self) -> np.ndarray:
        """The number of each face's person, int64 (G,): equal names, equal numbers."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(name, len(numbers)) for name in self.names])


def open_gallery(path: Path, model: Recognizer, align: Align, index: Path | None = None) -> Gallery:
    """The faces of a photo, of a flat folder, or of folders per person; one face per photo.

    The index of a folder is `index`, or without it the folder's name with `.index` beside it. It is
    made again, with one line that says why, if the model, the photos or the options have changed.
    ValueError if the gallery shows no face, or if something else has the name of the index.
    """
    if path.is_file():
        faces, left_out = _largest([path], model, align)
        _check(len(faces), path, left_out)
        photos = [face.photo.name for face in faces]
        return Gallery(path.parent, photos, _places(faces), model.vectors(faces), left_out)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such photo or folder")
    listed, _ = list_photos(path)
    if not listed:
        raise ValueError(f"{path}: holds no photo")
    folder = index or path.absolute().with_name(f"{path.absolute().name}.index")
    settings = {
        "version": VERSION,
        "model": model.digest,
        "size": model.size,
        "mirror": model.mirror,
        "align": align,
        "photos": _digest(path, listed),
    }
    files = (VECTORS, NAMES, PLACES, LEFT_OUT, *BEGUN)
    if not begin(folder, settings, SETTINGS, files, "--index"):
        _make(folder, path, listed, settings, model, align)
    return _read(folder, path)


def _make(
    folder: Path,
    path: Path,
    listed: list[Path],
    settings: dict[str, Any],
    model: Recognizer,
    align: Align,
) -> None:
    """Find the faces and embed them. A second call goes on where the first one was stopped."""
    if not (folder / PLACES).exists():
        faces, left_out = _largest([path / photo for photo in listed], model, align)
        _check(len(faces), path, left_out)
        photos = [face.photo.relative_to(path).as_posix() for face in faces]
        write_lines(folder / NAMES, photos)
        write_lines(folder / LEFT_OUT, [part for pair in left_out for part in pair])
        with atomic_write(folder / PLACES) as file:
            np.save(file, _places(faces))
    photos, places = read_lines(folder / NAMES), read_npy(folder / PLACES)
    faces = [_face(path / photo, place) for photo, place in zip(photos, places, strict=True)]
    images = FaceImages(faces)
    extract(
        model.embed,
        images,
        photos,
        folder / VECTORS,
        size=model.size,
        model=model.digest,
        mirror=model.mirror,
        unit=True,
        crop=images.crop,
        progress=partial(progress_bar, what="faces"),
    )
    write_lines(folder / NAMES, photos)
    write_settings(folder / SETTINGS, {**settings, "complete": True})
    count = counted(len(photos), "face")
    print(one_line(f"{folder}: index of {count}; it holds biometric data, like the photos"))


def _read(folder: Path, path: Path) -> Gallery:
    """The gallery of a complete index; ValueError if its files do not fit each other."""
    photos, places = read_lines(folder / NAMES), read_npy(folder / PLACES)
    try:
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        vectors = np.empty(0)
    fits = vectors.ndim == 2 and vectors.dtype == np.float32
    if not fits or not len(photos) == len(places) == len(vectors) or places.shape[1:] != (16,):
        raise ValueError(f"{folder}: damaged; remove the folder, then it is made anew")
    left_out = read_lines(folder / LEFT_OUT)
    return Gallery(
        path, photos, places, vectors, list(zip(left_out[::2], left_out[1::2], strict=True))
    )


def _largest(
    photos: Sequence[Path], model: Recognizer, align: Align
) -> tuple[list[FaceIn], LeftOut]:
    """The largest face of each photo."""
    faces, left_out = faces_of(photos, model, align)
    return [face for face in faces if face.number == 1], left_out


def faces_of(
    photos: Sequence[Path], model: Recognizer, align: Align
) -> tuple[list[FaceIn], LeftOut]:
    """All faces of the photos, and the photos without one."""
    faces: list[FaceIn] = []
    left_out: LeftOut = []
    with progress_bar(len(photos), "looking for faces") as advance:
        for photo, found in zip(photos, find_all_faces(photos, model.size, align), strict=True):
            if isinstance(found, Exception):
                left_out.append((str(photo), str(found)))
            elif not found:
                left_out.append((str(photo), "no face was found"))
            else:
                faces += found
            advance(1)
    return faces, left_out


def _check(faces: int, path: Path, left_out: LeftOut) -> None:
    if faces == 0:
        photo, why = left_out[0]
        raise ValueError(
            f"{path}: none of {len(left_out)} photos shows a face ({photo}: {why}); if they are "
            "aligned crops, give --align never"
        )


def _person(photo: str) -> str:
    folder, _, rest = photo.partition("/")
    return folder if rest else photo.rpartition(".")[0]


def _places(faces: Sequence[FaceIn]) -> np.ndarray:
    """float64 (G,16): number, faces, box (4), landmarks (10); NaN for an aligned crop."""
    places = np.full((len(faces), 16), np.nan)
    for place, face in zip(places, faces, strict=True):
        place[:2] = face.number, face.faces
        if face.landmarks is not None and face.box is not None:
            place[2:6], place[6:] = face.box, face.landmarks.ravel()
    return places


def _face(photo: Path, place: np.ndarray) -> FaceIn:
    number, faces = int(place[0]), int(place[1])
    if np.isnan(place[6]):
        return FaceIn(photo, number, faces)
    return FaceIn(photo, number, faces, tuple(map(float, place[2:6])), place[6:].reshape(5, 2))


def _digest(path: Path, listed: Sequence[Path]) -> str:
    """Changes if a photo is added, removed, renamed or written."""
    sha = hashlib.sha256()
    for photo in listed:
        facts = (path / photo).stat()
        sha.update(f"{photo}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="replace"))
    return sha.hexdigest()
