"""Whether a JPEG is whole.

The judge is libjpeg-turbo, which warns of data that are missing or cannot be right. Two things are
told apart here. Some warnings concern bytes that no pixel depends on, and such a JPEG is mended.
Some losses cause no warning, and they are looked for: zeros in place of a block that was never
written, and scans that an end mark cuts off.
"""

import re

from data.image_size import JPEG_BEGIN, JPEG_SCAN, JPEG_SIZE, jpeg_segments

END, SCAN = b"\xff\xd9", b"\xff\xda"
TABLES, JFIF = 0xC4, 0xE0
BASELINE, PROGRESSIVE = (0xC0, 0xC1), 0xC2
MOST_COMPONENTS = 4  # of a scan
HOLE = bytes(64)
ZEROS = "zeros in place of data at byte"
FEW = 16  # bytes before the end mark that may be anything
WARNINGS = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression", "Warning")
EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x(..)")


def mended(encoded: bytes, warning: str) -> bytes | None:
    """The JPEG without the bytes that libjpeg warns of, if no pixel depends on them; else None.

    Those are padding before the end mark, bytes between two segments of the header, and an unknown
    JFIF revision. libjpeg tells only its first warning, so the result may cause another.
    """
    found = EXTRANEOUS.fullmatch(warning)
    if not found and not warning.startswith("Warning: unknown JFIF revision"):
        return None
    parts, data = [JPEG_BEGIN], len(encoded)
    for marker, begin, end in jpeg_segments(encoded):
        segment = encoded[begin:end]
        if marker == JFIF and segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1\1" + segment[11:]
        parts.append(segment)
        data = end
    if not found or found[2] != "d9":
        whole = b"".join(parts) + encoded[data:]
        return None if whole == encoded else whole

    end = encoded.find(END, data)
    begin = end - int(found[1])
    padding = encoded[begin:end]
    run = len(encoded[:end].rstrip(padding[:1]))
    if run < begin:
        # More bytes are equal than libjpeg warns of: it has used some, of padding or of a hole. One
        # stays, because it may be data. If others were needed, libjpeg warns again.
        begin = run + 1
    elif run > begin and len(padding) > FEW:
        return None
    return encoded[:begin] + encoded[end:] if data < begin < end else None


def unwarned_loss(encoded: bytes, frame: int) -> str | None:
    """What a JPEG lacks although libjpeg may decode it without a warning; None if nothing.

    frame: the position of its frame header.
    """
    kind = encoded[frame + 1]
    if kind == PROGRESSIVE:
        height, width = JPEG_SIZE.unpack_from(encoded, frame + 5)
        # A plain area needs less than 4 bits per block of 64 pixels.
        hole = encoded.find(bytes(max(len(HOLE), height * width // 128)), frame)
        return _missing_scans(encoded, frame) if hole < 0 else f"{ZEROS} {hole}"
    return _hole(encoded, frame) if kind in BASELINE and encoded.find(HOLE, frame) >= 0 else None


def _missing_scans(encoded: bytes, frame: int) -> str | None:
    """Progressive scans give each component all bits of its first coefficient and of the others."""
    count, end = encoded[frame + 9], encoded.find(END, frame)
    components = encoded[frame + 10 : frame + 10 + 3 * count : 3]
    lacking = {(one, place) for one in components for place in range(64)}
    at = encoded.find(SCAN, frame, end)
    while lacking and at >= 0:
        held = encoded[at + 4]
        first, last, bits = encoded[at + 5 + 2 * held :][:3].ljust(3, b"\xff")
        if held <= MOST_COMPONENTS and last < 64 and bits & 0xF == 0:
            scanned = encoded[at + 5 : at + 5 + 2 * held : 2]
            lacking -= {(one, place) for one in scanned for place in range(first, last + 1)}
        at = encoded.find(SCAN, at + 2, end)
    return "its last scans are missing" if lacking else None


def _hole(encoded: bytes, frame: int) -> str | None:
    """Zeros are no data of a baseline scan if zero bits stand for a coefficient.

    They would be blocks whose 63 coefficients are all the same, which no picture has. Where the
    shortest code ends a block, zeros may be a plain area.
    """
    data = len(encoded)
    ends_block = True
    for marker, begin, end in jpeg_segments(encoded):
        if marker == JPEG_SCAN and encoded[begin + 4] == encoded[frame + 9]:
            data = end
        table = begin + 4
        while marker == TABLES and table + 17 < min(end, len(encoded)):
            if encoded[table] >> 4:  # AC codes: 16 counts, then the symbols by length of code
                ends_block &= encoded[table + 17] == 0
            table += 17 + sum(encoded[table + 1 : table + 17])
    hole = encoded.find(HOLE, data, encoded.find(END, data))
    return None if ends_block or hole < 0 else f"{ZEROS} {hole}"
