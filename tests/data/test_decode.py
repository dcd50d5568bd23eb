"""Both decoders give OpenCV's pixels, and they write only their row of a batch."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode import DecodeError, decode, decode_into

SIZE = 48


def picture(height: int = SIZE, width: int = SIZE, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(), exif=exif)


def after_jfif(encoded: bytes) -> bytes:
    """The JPEG with a JFIF segment before its EXIF segment, as cameras write them."""
    return (
        encoded[:2] + b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" + encoded[2:]
    )


def opencv(encoded: bytes) -> np.ndarray:
    """What OpenCV decodes, resized by pixel averages if it shrinks and else bilinearly."""
    image: np.ndarray | None = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    if image.shape[:2] == (SIZE, SIZE):
        return image
    shrinks = min(image.shape[:2]) >= SIZE
    return cv2.resize(
        image, (SIZE, SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def refused_by_opencv(encoded: bytes) -> bool:
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB) is None
    except cv2.error:
        return True


IMAGES = {
    "4:2:0": saved(picture(), quality=90),
    "4:4:4": saved(picture(), quality=95, subsampling=0),
    "4:2:2, coarse": saved(picture(), quality=20, subsampling=1),
    "progressive": saved(picture(), progressive=True),
    "gray": saved(picture().convert("L")),
    "CMYK": saved(picture().convert("CMYK")),
    "PNG": saved(picture(), "PNG"),
    "PNG with alpha": saved(picture().convert("RGBA"), "PNG"),
    "larger": saved(picture(112, 112)),
    "smaller": saved(picture(20, 31)),
    "as wide, less high": saved(picture(SIZE - 8, SIZE)),
    "as many pixels, not square": saved(picture(SIZE // 2, SIZE * 2)),
    **{f"turned {n}": turned(n) for n in (3, 6, 8)},
    "turned, after JFIF": after_jfif(turned(6)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_opencv_s(name: str) -> None:
    np.testing.assert_array_equal(decode(IMAGES[name], SIZE), opencv(IMAGES[name]))


@pytest.mark.parametrize("name", IMAGES)
def test_only_the_given_row_is_written(name: str) -> None:
    rows = np.full((3, SIZE, SIZE, 3), 7, np.uint8)
    decode_into(IMAGES[name], rows[1])
    np.testing.assert_array_equal(rows[1], opencv(IMAGES[name]))
    assert (rows[[0, 2]] == 7).all()


def test_an_exif_entry_rotates_the_image() -> None:
    plain, sideways = decode(turned(1), SIZE), decode(turned(6), SIZE)
    np.testing.assert_array_equal(sideways, np.rot90(plain, -1))


@pytest.mark.parametrize("encoded", [b"", b"no image", IMAGES["4:2:0"][:-300], IMAGES["PNG"][:20]])
def test_incomplete_images_are_refused(encoded: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(encoded, SIZE)


@settings(max_examples=300, deadline=None)
@given(st.integers(2, len(IMAGES["4:2:0"]) - 3), st.integers(0, 255))
def test_a_damaged_jpeg_is_refused_or_gives_what_opencv_makes_of_it(place: int, value: int) -> None:
    encoded = bytearray(IMAGES["4:2:0"])
    encoded[place] = value
    try:
        found = decode(bytes(encoded), SIZE)
    except DecodeError:
        return
    if not refused_by_opencv(bytes(encoded)):
        np.testing.assert_array_equal(found, opencv(bytes(encoded)))


@pytest.mark.parametrize(("most", "bits"), [(255, 8), (4095, 12), (65535, 16)])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_samples_of_16_bits_are_scaled_by_the_bits_that_they_use(
    suffix: str, most: int, bits: int
) -> None:
    levels = np.asarray(picture(), np.float64) / 255
    levels[0, 0] = 1
    samples = np.round(levels * most).astype(np.uint16)
    encoded = cv2.imencode(suffix, samples[:, :, ::-1])[1].tobytes()
    found = decode(encoded, SIZE)
    assert np.abs(found - 255 * levels).max() <= 1
    assert found[0, 0].tolist() == [255, 255, 255]
    assert 1 << bits == most + 1
