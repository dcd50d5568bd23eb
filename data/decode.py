"""Encoded bytes to pixels.

JPEGs, which nearly all face crops are, go through libjpeg-turbo straight to where the pixels are
wanted: OpenCV decodes as fast and to equal pixels, but into an array of its own, and copying that
into a batch costs 7 % of the decoding. OpenCV takes everything else, turned JPEGs (EXIF) and broken
ones included, so that what it says of a file counts.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg


class DecodeError(ValueError):
    """These bytes are not an image that can be decoded whole."""


def decode_any(encoded: bytes) -> np.ndarray:
    """uint8 (H,W,3) RGB at the image's own size. Cut-off JPEGs, which OpenCV would fill with gray,
    are refused."""
    if not encoded:
        raise DecodeError("zero-length image")
    if encoded[:2] == b"\xff\xd8" and encoded.rfind(b"\xff\xd9") < 0:
        raise DecodeError(f"JPEG of {len(encoded)} bytes is cut off (no end marker)")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DecodeError(f"{len(encoded)} bytes: {error.err}") from None
    if image is None:
        raise DecodeError(
            f"{len(encoded)} bytes beginning {encoded[:8].hex()} are no image that OpenCV can decode"
        )
    return image


def decode(encoded: bytes, size: int) -> np.ndarray:
    """uint8 (size,size,3) RGB; other sizes are resized (pixel averages when shrinking, bilinear
    when growing)."""
    out = np.empty((size, size, 3), np.uint8)
    decode_into(encoded, out)
    return out


def decode_into(encoded: bytes, out: np.ndarray) -> None:
    """As `decode`, into out uint8 (size,size,3), contiguous; what it holds after a DecodeError is
    undefined."""
    size = len(out)
    image = _plain_jpeg(encoded, out) if encoded[:2] == b"\xff\xd8" else None
    if image is None:
        image = decode_any(encoded)
    elif image.shape == out.shape:
        return
    height, width = image.shape[:2]
    if height == size and width == size:
        out[:] = image
        return
    shrinks = height >= size and width >= size
    cv2.resize(
        image, (size, size), dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def _plain_jpeg(encoded: bytes, out: np.ndarray) -> np.ndarray | None:
    """A whole JPEG that no EXIF entry may turn: `out` filled, a copy if it is smaller, None if it
    is none or larger."""
    if encoded.find(b"Exif", 0, encoded.find(b"\xff\xda")) >= 0 or encoded.rfind(b"\xff\xd9") < 0:
        return None
    try:
        image: np.ndarray = simplejpeg.decode_jpeg(encoded, buffer=out)
    except ValueError:
        return None
    return image if image.shape == out.shape else image.copy()
