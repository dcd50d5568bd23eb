"""Names of unknown origin, made harmless for the place where they are written.

A file, a person or a benchmark may have any name. In the wrong place a line feed makes a new row, a
`=` a formula, `<b>` or `|` markup, and an escape character takes over the terminal.
"""

import re

# Control characters, line separators, marks that reverse the direction of the text, and the halves
# that stand for bytes outside UTF-8.
_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4}))")
_MARKUP = re.compile(r"[\\`*|<>\[\]&~$]|(?<![^\W_])_|_(?![^\W_])|^\s*(?:#|[-+](?=\s))")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?%?")
FORMULA = ("=", "+", "-", "@")


def one_line(text: str) -> str:
    """The text with `\\xNN` or `\\uNNNN` in place of each character that is not shown as itself."""
    return _HIDDEN.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
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
