"""Encoded bytes to pixels, and pixels to a JPEG.

Nearly all face crops are JPEGs. libjpeg-turbo decodes a JPEG directly into its row of the batch,
and its warnings say whether the file is whole (data/jpeg.py). OpenCV would decode it as fast and to
equal pixels, but it accepts half a JPEG, and the copy from separate memory costs 7 % of the
decoding time. OpenCV decodes all other images, JPEGs that an EXIF entry rotates, and those with
samplings that simplejpeg does not know.

The size in an image's header is read before anything is decoded. It is compared with the limits in
data/limits.py, and simplejpeg gets only images that fit: release 1.9.0 loses 4.4 kB at each JPEG
that is larger than its buffer (docs/log/2026-11-25-simplejpeg-leak.md).
"""

import cv2
import numpy as np
import simplejpeg

from data.image_size import JPEG_BEGIN, JPEG_SIZE, SIZES, Size, jpeg_frame, kind_and_size
from data.jpeg import WARNINGS, mended, unwarned_loss
from data.limits import FREE_PIXELS, MOST_PIXELS, MOST_PIXELS_PER_BYTE
from data.types import Pixels

DEPTHS = (1 << 8, 1 << 12, 1 << 16)  # values of a sample that 16 bits hold


class DecodeError(ValueError):
    """These bytes are not an image that can be decoded completely."""


def decode_any(encoded: bytes) -> Pixels:
    """uint8 (H,W,3) RGB at the image's own size.

    A JPEG of which a part is missing is refused; OpenCV would fill it with gray. So is an image
    whose header claims more pixels than the limits in data/limits.py allow.

    Samples of 16 bits are scaled by the values that they hold: an image without a value above 4095
    has 12 bits, and one without a value above 255 has 8.
    """
    _check_header(encoded)
    if encoded.startswith(JPEG_BEGIN):
        frame, exif = jpeg_frame(encoded) or (0, False)
        encoded, pixels = _decode_jpeg(encoded, frame, factor=8 if exif else 1)
        if pixels is not None and not exif:
            return pixels
    return _opencv(encoded)


def _opencv(encoded: bytes) -> Pixels:
    try:
        # IMREAD_COLOR_RGB with 16 bits returns a wrong image of a TIFF (OpenCV 5.0.0, tried).
        image: np.ndarray | None = cv2.imdecode(
            np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        )
    except cv2.error as error:
        raise DecodeError(f"{len(encoded)} bytes: {error.err}") from None
    if image is None:
        raise DecodeError(f"{_beginning(encoded)}: OpenCV finds no image in them")
    if image.dtype == np.uint16:
        values = next(values for values in DEPTHS if image.max() < values)
        image = cv2.convertScaleAbs(image, alpha=255 / (values - 1))
    if image.dtype != np.uint8:
        raise DecodeError(f"{_beginning(encoded)}: samples of {image.dtype}, expected 8 or 16 bits")
    rgb: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[assignment]
    return rgb


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


def decode_into(encoded: bytes, out: Pixels) -> Size:
    """Decodes as `decode` does, into out uint8 (size,size,3), contiguous.

    Returns the height and width that the image had. After a DecodeError the contents of `out` are
    undefined.
    """
    image = _decode_plain_jpeg(encoded, out) if encoded.startswith(JPEG_BEGIN) else None
    if image is None:
        image = decode_any(encoded)
    elif image.shape == out.shape:
        return image.shape[:2]
    resize_into(image, out)
    return image.shape[:2]


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
    """Decodes a JPEG without an EXIF entry, which could rotate it.

    Fills `out` and returns it; returns a copy of an image that is smaller than `out`, and None for
    an image that is larger or not of this kind.
    """
    found = jpeg_frame(encoded)
    if found is None or found[1]:
        return None
    height, width = JPEG_SIZE.unpack_from(encoded, found[0] + 5)
    if 3 * height * width > out.size:
        return None
    image = _decode_jpeg(encoded, found[0], out)[1]
    return image if image is None or image.shape == out.shape else image.copy()


def _decode_jpeg(
    encoded: bytes, frame: int, out: Pixels | None = None, factor: int = 1
) -> tuple[bytes, Pixels | None]:
    """(the JPEG without what libjpeg only warns of, its pixels); DecodeError if it is not whole.

    The pixels are None if simplejpeg does not know this kind. They lie in `out` or in new memory.

    frame: the position of its frame header.
    factor: divides the size of the pixels. All data of the file are read in any case.
    """
    least = 0 if factor == 1 else 1  # side in pixels; 0: do not scale
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            encoded, "RGB", False, False, least, least, factor, out
        )
        wrong = unwarned_loss(encoded, frame)
        if wrong is None:
            return encoded, pixels
    except ValueError as error:
        wrong = str(error)
        if not wrong.startswith(WARNINGS):
            return encoded, None
        better = mended(encoded, wrong)
        if better is not None:
            frame, _ = jpeg_frame(better) or (0, False)
            return _decode_jpeg(better, frame, out, factor)
    raise DecodeError(f"JPEG of {len(encoded)} bytes is broken: {wrong}")


def encode_jpeg(image: Pixels) -> bytes:
    """A JPEG of quality 95 of uint8 (H,W,3) RGB."""
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return encoded.tobytes()
