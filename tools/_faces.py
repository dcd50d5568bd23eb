"""The faces in photos: found once, and cut out whenever their pixels are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from data.align import align
from data.decode import decode
from data.detect import Detector, in_threads, shrink
from data.files import read_file
from data.image_size import kind_and_size
from data.landmarks import Landmarks, in_crop
from data.limits import MOST_IMAGE_BYTES
from data.photos import decode_photo, read_photo
from data.types import Pixels

Align = Literal["auto", "always", "never"]
"""Which images are photos, in which faces are sought. The others are aligned crops already.

auto: all but those that have the size of the model's input. always: all. never: none.
"""


@dataclass(frozen=True)
class FaceIn:
    """One face in a photo.

    number, faces: the face is the number-th largest of so many. box: x1, y1, x2, y2 in pixels of
    the upright photo. landmarks: (5,2), in the same pixels; None if the photo is an aligned crop.
    """

    photo: Path
    number: int = 1
    faces: int = 1
    box: tuple[float, ...] | None = None
    landmarks: np.ndarray | None = None

    def __str__(self) -> str:
        return f"{self.photo}, face {self.number}" if self.faces > 1 else str(self.photo)

    def facts(self) -> dict[str, Any]:
        """What `--json` says of it."""
        return {
            "photo": str(self.photo),
            "face": self.number,
            "faces": self.faces,
            "box": None if self.box is None else [round(side, 1) for side in self.box],
        }


@dataclass(frozen=True)
class FaceImages:
    """Faces as `Images`, with the function that cuts them out."""

    faces: Sequence[FaceIn]

    def __len__(self) -> int:
        return len(self.faces)

    def read(self, index: int) -> bytes:
        return read_file(self.faces[index].photo, MOST_IMAGE_BYTES)

    def describe(self, index: int) -> str:
        return str(self.faces[index])

    def crop(self, index: int, size: int) -> Pixels:
        """The aligned face, uint8 (size,size,3) RGB."""
        landmarks = self.faces[index].landmarks
        if landmarks is None:
            return decode(self.read(index), size)
        return align(decode_photo(self.read(index)), landmarks, size)

    def landmarks_in(self, size: int) -> Landmarks:
        """Where each crop of `size` pixels has its landmarks; NaN for crops of other origin."""
        found = np.full((len(self), 5, 2), np.nan, np.float32)
        for row, face in enumerate(self.faces):
            if face.landmarks is not None:
                found[row] = in_crop(face.landmarks, size)
        return found


def counted(count: int, noun: str) -> str:
    """`1 face`, `2 faces`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def find_faces(photo: Path, size: int, how: Align, detect: Detector) -> list[FaceIn]:
    """The faces in one photo, the largest first; none if it shows no face.

    size: side of the model's input. ValueError that names the photo if it cannot be decoded.
    """
    try:
        encoded = read_file(photo, MOST_IMAGE_BYTES)
        if how == "never" or (how == "auto" and _is_crop(encoded, size)):
            decode(encoded, size)  # so that a broken crop is left out here
            return [FaceIn(photo)]
        found = detect(decode_photo(encoded))
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(photo) in message else f"{photo}: {message}") from None
    return [
        FaceIn(photo, number, len(found), tuple(map(float, face.box)), face.landmarks)
        for number, face in enumerate(found, 1)
    ]


def find_all_faces(
    photos: Sequence[Path], size: int, how: Align
) -> Iterator[list[FaceIn] | ValueError | OSError]:
    """`find_faces` of each photo, in order and in some threads, or why a photo cannot be read."""

    def find(detect: Detector, photo: Path) -> list[FaceIn] | ValueError | OSError:
        try:
            return find_faces(photo, size, how, detect)
        except (ValueError, OSError) as error:
            return error

    return in_threads(find, photos)


def _is_crop(encoded: bytes, size: int) -> bool:
    found = kind_and_size(encoded)
    return found is not None and found[1] == (size, size)


def draw_boxes(faces: Sequence[FaceIn], used: int, longest: int = 640) -> Pixels:
    """The photo of these faces, uint8 (H,W,3), with a box around each.

    The boxes of the first `used` faces are green, the others gray. longest: most pixels of a side.
    """
    photo = read_photo(faces[0].photo)
    factor = min(1.0, longest / max(photo.shape[:2]))
    small: Pixels = shrink(photo, factor).copy()
    for face in faces:
        if face.box is not None:
            left, top, right, bottom = (round(side * factor) for side in face.box)
            color = (0, 200, 0) if face.number <= used else (150, 150, 150)
            cv2.rectangle(small, (left, top), (right, bottom), color, 2)
    return small
