"""Half a JPEG is refused wherever it is cut, and a whole one never is."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode import DecodeError, decode, decode_any

SIZE = 112
END = b"\xff\xd9"


def picture(**options: Any) -> bytes:
    """A JPEG with structure and noise, as dense as a face crop."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.random((9, 9, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(255 * smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


def with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(exif=exif)


WHOLE = {
    "4:2:0": picture(),
    "4:4:4": picture(subsampling=0),
    "optimized": picture(optimize=True),
    "progressive": picture(progressive=True),
    "with restarts": picture(restart_marker_blocks=5),
    "with EXIF": with_exif(),
}


def broken(encoded: bytes) -> bool:
    """Whether both decoders refuse a JPEG: into a row of its size and of a smaller one."""
    outcomes = []
    for size in (SIZE, SIZE - 16):
        try:
            decode(encoded, size)
            outcomes.append(False)
        except DecodeError:
            outcomes.append(True)
    assert len(set(outcomes)) == 1
    return outcomes[0]


def data_of(encoded: bytes) -> int:
    """Where the data of the first scan begin."""
    scan = encoded.find(b"\xff\xda")
    return scan + 2 + int.from_bytes(encoded[scan + 2 : scan + 4], "big")


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_jpeg_is_not_refused(kind: str) -> None:
    assert not broken(WHOLE[kind])


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.98), marked=st.booleans())
def test_a_jpeg_that_is_cut_is_refused_with_and_without_an_end_mark(
    kind: str, share: float, marked: bool
) -> None:
    whole = WHOLE[kind]
    begin = data_of(whole)
    cut = whole[: begin + int(share * (len(whole) - begin))]
    assert broken(cut + (END if marked else b""))


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("length", [512, 4096])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.7])
def test_zeros_in_place_of_a_block_are_refused(kind: str, length: int, share: float) -> None:
    whole = WHOLE[kind]
    begin = data_of(whole)
    at = begin + int(share * (len(whole) - begin))
    hole = min(length, len(whole) - 2 - at)
    assert broken(whole[:at] + bytes(hole) + whole[at + hole :])
    assert broken(whole[:at] + bytes(len(whole) - at))
    assert broken(whole[:at] + bytes(len(whole) - at - 2) + END)


def test_zeros_are_refused_where_the_decoder_comes_out_even() -> None:
    """Some holes cost just as many blocks as they hold; then libjpeg has no warning."""
    whole = WHOLE["4:2:0"]
    begin = data_of(whole)
    for at in range(begin, len(whole) - 600, 97):
        assert broken(whole[:at] + bytes(512) + whole[at + 512 :])


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "bytes after the end": lambda one: one + b"a trailer",
    "a second image after the end": lambda one: one + WHOLE["4:4:4"],
    "a zero before the end mark": lambda one: one[:-2] + b"\0" + END,
    "three bytes before the end mark": lambda one: one[:-2] + b"abc" + END,
    "padding before the end mark": lambda one: one[:-2] + bytes(700) + END,
    "fill bytes before the end mark": lambda one: one[:-2] + b"\xff" * 9 + END,
    "bytes before the first segment": lambda one: one[:2] + b"\0\0" + one[2:],
    "bytes before the tables": lambda one: one.replace(b"\xff\xdb", b"\0\0\0\xff\xdb", 1),
    "an unknown revision": lambda one: one[:11] + b"\x09" + one[12:],
    "all of them": lambda one: (
        one[:11] + b"\x09" + one[12:20] + b"\0\0" + one[20:-2] + bytes(30) + END + b"more"
    ),
}


@pytest.mark.parametrize("kind", ["4:2:0", "optimized", "progressive", "with restarts"])
@pytest.mark.parametrize("change", HARMLESS)
def test_bytes_that_no_pixel_depends_on_are_accepted(kind: str, change: str) -> None:
    changed = HARMLESS[change](WHOLE[kind])
    np.testing.assert_array_equal(decode_any(changed), decode_any(WHOLE[kind]))
    half = HARMLESS[change](WHOLE[kind][: len(WHOLE[kind]) // 2] + END)
    assert broken(half)


def test_plain_areas_are_not_taken_for_holes() -> None:
    """With optimal tables a white page is thousands of zeros."""
    for options in ({}, {"optimize": True}, {"progressive": True}, {"subsampling": 0}):
        for height, width in ((112, 112), (2000, 1500)):
            file = io.BytesIO()
            Image.new("RGB", (width, height), "white").save(file, "JPEG", **options)
            assert decode_any(file.getvalue()).shape == (height, width, 3)
