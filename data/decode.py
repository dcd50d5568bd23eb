"""Encoded bytes to pixels."""

from __future__ import annotations

import cv2
import numpy as np


class DecodeError(ValueError):
    """These bytes are not an image that can be decoded whole."""


def decode_any(encoded: bytes) -> np.ndarray:
    """uint8 (H,W,3) RGB at the image's own size. Cut-off JPEGs, which OpenCV would fill with grey, are refused."""
    if not encoded:
        raise DecodeError("zero-length image")
    if encoded[:2] == b"\xff\xd8" and encoded.rfind(b"\xff\xd9") < 0:
        raise DecodeError(f"JPEG of {len(encoded)} bytes is cut off (no end marker)")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DecodeError(f"{len(encoded)} bytes: {error.err}") from None
    if image is None:
        raise DecodeError(f"{len(encoded)} bytes beginning {encoded[:8].hex()} are no image that OpenCV can decode")
    return image


def decode(encoded: bytes, size: int) -> np.ndarray:
    """uint8 (size,size,3) RGB; other sizes are resized (pixel averages when shrinking, bilinear when growing)."""
    image = decode_any(encoded)
    height, width = image.shape[:2]
    if height == size and width == size:
        return image
    shrinks = height >= size and width >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
