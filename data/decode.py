"""Encoded bytes to pixels, and pixels to a JPEG.

Nearly all face crops are JPEGs. libjpeg-turbo decodes a JPEG directly into its row of the batch.
OpenCV would decode it as fast and to equal pixels, but into separate memory, and the copy from
there costs 7 % of the decoding time. OpenCV decodes all other images, including JPEGs that an EXIF
entry rotates and JPEGs that are broken. So OpenCV decides whether a file is readable.

The size in an image's header is read before anything is decoded. It is compared with the limits in
data/limits.py, and simplejpeg gets only images that fit: release 1.9.0 loses 4.4 kB at each JPEG
that is larger than its buffer (docs/log/2026-11-25-simplejpeg-leak.md).
"""

import cv2
import numpy as np
import simplejpeg

from data.image_size import JPEG_BEGIN, SIZES, Size, jpeg_size, kind_and_size
from data.limits import FREE_PIXELS, MOST_PIXELS, MOST_PIXELS_PER_BYTE
from data.types import Pixels

JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"


class DecodeError(ValueError):
    """These bytes are not an image that can be decoded completely."""


def decode_any(encoded: bytes) -> Pixels:
    """uint8 (H,W,3) RGB at the image's own size.

    A JPEG that is cut off is refused; OpenCV would fill the missing part with gray. So is an image
    whose header claims more pixels than the limits in data/limits.py allow.
    """
    _check_header(encoded)
    if encoded.startswith(JPEG_BEGIN) and JPEG_END not in encoded:
        raise DecodeError(f"JPEG of {len(encoded)} bytes is cut off (no end marker)")
    try:
        image: np.ndarray | None = cv2.imdecode(
            np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB
        )
    except cv2.error as error:
        raise DecodeError(f"{len(encoded)} bytes: {error.err}") from None
    if image is None:
        raise DecodeError(f"{_beginning(encoded)}: OpenCV finds no image in them")
    return image


def _check_header(encoded: bytes) -> None:
    """DecodeError unless the bytes begin as an image of a known kind and of a bounded size."""
    if not encoded:
        raise DecodeError("zero-length image")
    found = kind_and_size(encoded)
    if found is None:
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in SIZES.values()))
        raise DecodeError(f"{_beginning(encoded)}: no image of a known kind ({kinds})")
    kind, size = found
    if size is None or 0 in size:
        raise DecodeError(f"{_beginning(encoded)}: a {kind} whose header holds no size")
    check_pixels(kind, size, len(encoded))


def check_pixels(kind: str, size: Size, length: int) -> None:
    """DecodeError if `length` bytes claim an image larger than the limits in data/limits.py."""
    height, width = size
    most = min(MOST_PIXELS, FREE_PIXELS + MOST_PIXELS_PER_BYTE * length)
    if height * width > most:
        raise DecodeError(
            f"{kind} of {length} bytes claims {height}×{width} pixels; "
            f"at most {most:,} pixels are decoded from so many bytes"
        )


def _beginning(encoded: bytes) -> str:
    return f"{len(encoded)} bytes that begin {encoded[:8].hex()}"


def decode(encoded: bytes, size: int) -> Pixels:
    """uint8 (size,size,3) RGB.

    An image of another size is resized: by pixel averages if it shrinks, else bilinearly.
    """
    out = np.empty((size, size, 3), np.uint8)
    decode_into(encoded, out)
    return out


def decode_into(encoded: bytes, out: Pixels) -> None:
    """Decodes as `decode` does, into out uint8 (size,size,3), contiguous.

    After a DecodeError the contents of `out` are undefined.
    """
    image = _decode_plain_jpeg(encoded, out) if encoded.startswith(JPEG_BEGIN) else None
    if image is None:
        image = decode_any(encoded)
    elif image.shape == out.shape:
        return
    resize_into(image, out)


def resize_into(image: np.ndarray, out: np.ndarray) -> None:
    """Resizes an image (H,W,3) into out (size,size,3) of the same type, as `decode` does."""
    size = len(out)
    height, width = image.shape[:2]
    if height == size and width == size:
        out[:] = image
        return
    shrinks = height >= size and width >= size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(image, (size, size), dst=out, interpolation=interpolation)


def _decode_plain_jpeg(encoded: bytes, out: Pixels) -> Pixels | None:
    """Decodes a complete JPEG without an EXIF entry, which could rotate it.

    Fills `out` and returns it; returns a copy of an image that is smaller than `out`, and None for
    an image that is larger or not of this kind.
    """
    found = jpeg_size(encoded)
    if found is None or 3 * found[0] * found[1] > out.size:
        return None
    has_exif = encoded.find(b"Exif", 0, encoded.find(JPEG_SCAN)) >= 0
    # The end marker is searched from the end, where it nearly always stands.
    if has_exif or encoded.rfind(JPEG_END) < 0:
        return None
    try:
        image: Pixels = simplejpeg.decode_jpeg(encoded, buffer=out)
    except ValueError:
        return None
    return image if image.shape == out.shape else image.copy()


def encode_jpeg(image: Pixels) -> bytes:
    """A JPEG of quality 95 of uint8 (H,W,3) RGB."""
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return encoded.tobytes()
