"""Photos as cameras and telephones make them: turned by an EXIF entry, large, JPEG or HEIC."""

import io
from pathlib import Path

import numpy as np

from data.decode import DecodeError, check_pixels, decode_any
from data.files import read_file
from data.limits import MOST_IMAGE_BYTES
from data.names import SUFFIXES
from data.types import Pixels

PHOTO_SUFFIXES = (*SUFFIXES, ".heic", ".heif")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class HeicUnavailable(ValueError):
    """This is a HEIC photo, and the library that reads HEIC is missing or does not load."""


def read_photo(path: str | Path) -> Pixels:
    """uint8 (H,W,3) RGB of a photo file, upright; ValueError says why a file cannot be read."""
    return decode_photo(read_file(path, MOST_IMAGE_BYTES))


def decode_photo(encoded: bytes) -> Pixels:
    """uint8 (H,W,3) RGB of an encoded photo, turned as its EXIF entry says."""
    is_heic = encoded[4:8] == b"ftyp" and encoded[8:12] in HEIC_BRANDS
    return _decode_heic(encoded) if is_heic else decode_any(encoded)


def _decode_heic(encoded: bytes) -> Pixels:
    try:
        import pillow_heif
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "pillow_heif":
            raise HeicUnavailable(
                "HEIC photos need pillow-heif: pip install -e '.[heic]'"
            ) from None
        raise HeicUnavailable(f"pillow-heif does not load: {error}") from None
    try:
        # The file is opened without decoding. libheif turns the image itself when it decodes.
        photo = pillow_heif.open_heif(io.BytesIO(encoded))
        width, height = photo.size
        check_pixels("heic", (height, width), len(encoded))
        pixels = np.asarray(photo)
    except DecodeError:
        raise
    except (ValueError, RuntimeError, OSError, SyntaxError) as error:
        raise DecodeError(f"HEIC of {len(encoded)} bytes: {error}") from None
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3])
