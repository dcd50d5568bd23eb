"""Kind, height and width of an encoded image, read from its first bytes without decoding it."""

import re
import struct
from collections.abc import Callable, Iterator

Size = tuple[int, int]
"""Height and width in pixels."""

JPEG_BEGIN = b"\xff\xd8"
# The frame headers of all JPEG processes (ITU T.81, table B.1), and markers without a length.
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
JPEG_ALONE = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
JPEG_NEXT = frozenset({0xD8, 0xD9})  # the beginning and the end of an image
JPEG_SCAN, JPEG_EXIF = 0xDA, 0xE1
JPEG_FRAME_BYTES = 10  # up to the number of components
MOST_SEGMENTS = 4096  # of a header; a camera writes some dozens at most
MARKER = struct.Struct(">BBH")
JPEG_SIZE = struct.Struct(">HH")
PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")


def jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of each segment of a JPEG's header, up to that of its first scan.

    As libjpeg does, it skips bytes between two segments that are no marker.
    """
    at = len(JPEG_BEGIN)
    try:
        for _ in range(MOST_SEGMENTS):
            begin, marker, length = MARKER.unpack_from(encoded, at)
            if begin == 0xFF and marker not in JPEG_ALONE and length >= 2:
                yield marker, at, at + 2 + length
                if marker == JPEG_SCAN:
                    return
                at += 2 + length
            elif begin != 0xFF:
                at = encoded.index(b"\xff", at)
            elif marker in JPEG_NEXT or marker not in JPEG_ALONE:
                return
            else:  # 0xFF fills up, so the next byte may be the marker
                at += 1 if marker == 0xFF else 2
    except (struct.error, ValueError):
        return


def jpeg_frame(encoded: bytes) -> tuple[int, bool] | None:
    """(position of the first frame header of a JPEG, whether an EXIF entry comes before it).

    None if there is no whole frame header.
    """
    exif = False
    for marker, begin, _ in jpeg_segments(encoded):
        if marker in JPEG_FRAMES:
            return (begin, exif) if begin + JPEG_FRAME_BYTES <= len(encoded) else None
        if marker == JPEG_EXIF and encoded.startswith(b"Exif", begin + 4):
            exif = True
    return None


def jpeg_size(encoded: bytes) -> Size | None:
    """The size in the first frame header of a JPEG; None if there is no such header."""
    found = jpeg_frame(encoded)
    return None if found is None else JPEG_SIZE.unpack_from(encoded, found[0] + 5)


def _png_size(encoded: bytes) -> Size | None:
    if encoded[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", encoded, 16)
    return height, width


def _bmp_size(encoded: bytes) -> Size:
    if struct.unpack_from("<I", encoded, 14)[0] == 12:  # the header of OS/2
        width, height = struct.unpack_from("<HH", encoded, 18)
    else:
        width, height = struct.unpack_from("<ii", encoded, 18)
    return abs(height), abs(width)  # a negative height means that the first row is on top


def _gif_size(encoded: bytes) -> Size:
    width, height = struct.unpack_from("<HH", encoded, 6)
    return height, width


def _webp_size(encoded: bytes) -> Size | None:
    kind = encoded[12:16]
    if kind == b"VP8X":  # an extended file begins with its canvas: two numbers of 24 bits
        low, middle, high = struct.unpack_from("<HHH", encoded, 24)
        return 1 + (middle >> 8 | high << 8), 1 + (low | (middle & 0xFF) << 16)
    if kind == b"VP8L":  # lossless: two numbers of 14 bits
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None


def _tiff_size(encoded: bytes) -> Size | None:
    """The size of the first image, or of its tiles if these are larger."""
    order = "<" if encoded[:1] == b"I" else ">"
    (at,) = struct.unpack_from(f"{order}I", encoded, 4)
    (count,) = struct.unpack_from(f"{order}H", encoded, at)
    sides = {256: 0, 257: 0, 322: 0, 323: 0}  # width, height, width and height of a tile
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHII", encoded, entry)
        if kind == 3:  # a number of 16 bits stands in the first two bytes
            (value,) = struct.unpack_from(f"{order}H", encoded, entry + 8)
        if tag in sides:
            sides[tag] = max(sides[tag], value)
    return (max(sides[257], sides[323]), max(sides[256], sides[322])) if sides[256] else None


def _pnm_size(encoded: bytes) -> Size | None:
    found = PNM.match(encoded[:4096])
    return (int(found[2]), int(found[1])) if found else None


SIZES: dict[bytes, tuple[str, Callable[[bytes], Size | None]]] = {
    JPEG_BEGIN: ("jpg", jpeg_size),
    b"\x89PNG\r\n\x1a\n": ("png", _png_size),
    b"RIFF": ("webp", _webp_size),
    b"BM": ("bmp", _bmp_size),
    b"GIF8": ("gif", _gif_size),
    b"II*\0": ("tif", _tiff_size),
    b"MM\0*": ("tif", _tiff_size),
    **{b"P%d" % digit: ("pnm", _pnm_size) for digit in range(1, 7)},
}
"""First bytes of a kind of image -> its name and the reader of its size."""


def kind_and_size(encoded: bytes) -> tuple[str, Size | None] | None:
    """("jpg", (height, width)): None in place of the size if the header holds none.

    None for bytes of an unknown kind.
    """
    for begin, (kind, size) in SIZES.items():
        if encoded.startswith(begin):
            try:
                return kind, size(encoded)
            except struct.error:  # the header is cut off
                return kind, None
    return None
