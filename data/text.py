"""Texts of unknown origin: decoded, and names made harmless for the place where they are written.

A file, a person or a benchmark may have any name. In the wrong place a line feed makes a new row, a
`=` a formula, `<b>` or `|` markup, and an escape character takes over the terminal.
"""

import codecs
import re
import unicodedata

# Control characters, line separators, marks that reverse the direction of the text, and the halves
# that stand for bytes outside UTF-8.
_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4}))")
_MARKUP = re.compile(r"[\\`*|<>\[\]&~$]|(?<![^\W_])_|_(?![^\W_])|^\s*(?:#|[-+](?=\s))")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?%?")
FORMULA = ("=", "+", "-", "@")


def decode_text(data: bytes, where: str) -> str:
    """The text of a file in UTF-8 or UTF-16; bytes outside UTF-8 stay as os.fsdecode has them.

    UTF-16 is known by its mark, or by zeros in every other byte. ValueError for other zeros.
    """
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
    begin = data[:4096]
    order = "utf-16" if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None
    if order is None and b"\0" in begin:
        order = {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get(
            (0 in begin[::2], 0 in begin[1::2]), "none"
        )
    if order is None:
        return data.decode("utf-8", "surrogateescape")
    try:
        return data.decode(order)
    except (UnicodeDecodeError, LookupError):
        raise ValueError(
            f"{where}: is no text in UTF-8 or UTF-16 (it begins {begin[:16].hex(' ')}); "
            "save it as UTF-8"
        ) from None


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end with LF, CRLF or CR.

    `str.splitlines` would also split where a name holds a rare character such as U+2028.
    """
    lines = re.split("\r\n|\n|\r", text)
    return lines if lines[-1] else lines[:-1]


def show_invisible(text: str) -> str:
    """The text with a code for each character that a reader cannot see or tell from another.

    These are all but plain ASCII, letters, digits, punctuation and symbols: marks, blanks, accents
    that are characters of their own.
    """
    plain = (
        c if " " <= c <= "~" or unicodedata.category(c)[0] in "LNPS" else _code(c) for c in text
    )
    return "".join(plain)


def one_line(text: str) -> str:
    """The text with `\\xNN` or `\\uNNNN` in place of each character that is not shown as itself."""
    return _HIDDEN.sub(lambda found: _code(found[0]), text)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def escape_name(name: str) -> str:
    """A name as a field of a text file: as `one_line`, and `\\` is doubled."""
    return one_line(name.replace("\\", "\\\\"))


def unescape_name(field: str) -> str:
    """The name that `escape_name` made this field of."""
    return _ESCAPED.sub(lambda found: chr(int(found[1] or found[2] or "5c", 16)), field)


def markdown_text(text: str) -> str:
    """The text as part of a line or a cell of Markdown, where it is shown as it is."""
    return _MARKUP.sub(lambda found: found[0][:-1] + "\\" + found[0][-1], one_line(text))


def csv_cell(value: object) -> object:
    """A value for a CSV file. A text that a spreadsheet would take for a formula gets a `'`."""
    text = one_line(str(value))
    if value is None or isinstance(value, (int, float)) or _NUMBER.fullmatch(text):
        return value
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text
