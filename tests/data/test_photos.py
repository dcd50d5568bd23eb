"""Photos with each EXIF orientation, HEIC photos, and what is said where HEIC cannot be read."""

import io
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from data.decode import DecodeError
from data.photos import HeicUnavailable, decode_photo, read_photo
from data.types import Pixels
from tests.photographs import photograph

ORIENTATION = 0x0112  # the EXIF entry


@pytest.fixture(scope="module")
def picture() -> Pixels:
    """Four colors in the quarters of an oblong."""
    quarters = np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [200, 200, 200]]])
    return np.asarray(quarters.repeat(32, 0).repeat(48, 1), np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_photo(picture: Pixels, orientation: int, tmp_path: Path) -> None:
    """EXIF 2.32, orientation: the side of the scene on which row 0 and column 0 of the file are."""
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95, subsampling=0)
    difference = read_photo(path).astype(int) - picture
    assert np.abs(difference).mean() < 3


def _heic(image: Pixels) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB", image.shape[1::-1], image.tobytes()).save(file, quality=90)
    return file.getvalue()


def test_heic_is_decoded_and_broken_heic_is_named(picture: Pixels) -> None:
    encoded = _heic(picture)
    assert np.abs(decode_photo(encoded).astype(int) - picture).mean() < 6
    astronaut = photograph("astronaut")
    assert np.abs(decode_photo(_heic(astronaut)).astype(int) - astronaut).mean() < 3
    for broken in (encoded[:-100], encoded[:300], encoded[:16], encoded[:12] + b"\0" * 400):
        with pytest.raises(DecodeError, match="HEIC of"):
            decode_photo(broken)


def test_heic_that_claims_too_many_pixels_is_not_decoded(
    picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = _heic(picture)
    monkeypatch.setattr("data.decode.MOST_PIXELS", 64 * 96 - 1)
    with pytest.raises(DecodeError, match="claims 64×96 pixels"):
        decode_photo(encoded)


def test_why_heic_cannot_be_read_is_told(
    picture: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = _heic(picture)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(HeicUnavailable, match=r"pip install -e '\.\[heic\]'"):
        decode_photo(encoded)
    monkeypatch.delitem(sys.modules, "pillow_heif")
    (tmp_path / "pillow_heif.py").write_text("raise ImportError('libheif.so.1 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HeicUnavailable, match=r"does not load: libheif\.so\.1 is missing"):
        decode_photo(encoded)
