r"""One rule for the names of files: in folders, in archives and in lists.

Hidden entries, such as the Finder's `__MACOSX/._1.jpg`, are nothing. Whatever else is no image is
left out, counted, and said once. In an archive `/` separates folders; a name without any `/` was
written on Windows, where `\` does.
"""

import logging
import os
import unicodedata
import zipfile
from collections import Counter

from data.text import escape_name, one_line, unescape_name

LANDMARKS = "landmarks.npy"
"""End of the name of the file that has the landmarks of a set (data/landmarks.py)."""

NOTES = "data.notes"
"""The logger of what is said once of a set. Of several processes, one needs to show it."""
log = logging.getLogger(NOTES)
# Those of all kinds of images that data/decode.py decodes.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".pgm", ".ppm", ".pbm", ".pnm"),
)
SYSTEM = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})  # compared in lower case
UTF8 = 1 << 11  # of the flags of a zip member
SUFFIX = "without the suffix of an image"
OUTSIDE = "in no person's folder"
DEEPER = "folders inside a person's folder"
NO_FILE = "links without a file"
SPECIAL = "FIFOs, sockets or devices, which are no images"


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether an entry of a folder is hidden, or one that a system made for itself."""
    return name.startswith(".") or name.lower() in SYSTEM


def stem(name: str) -> str:
    """A path without an image suffix."""
    head, dot, suffix = name.rpartition(".")
    return head if dot and f".{suffix.lower()}" in SUFFIXES else name


class LeftOut:
    """Counts what a set leaves out, by the reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, name)

    def sentence(self) -> str:
        """All of it in one line; empty if nothing was left out."""
        return "; ".join(
            one_line(f"{count:,} {reason}, the first is {self.first[reason]}")
            for reason, count in self.counts.items()
        )


def say_left_out(where: str, sentence: str) -> None:
    """Log the sentence of a LeftOut, if it has any."""
    if sentence:
        log.warning("%s: left out: %s", one_line(where), sentence)


def list_folder(folder: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """The names of the images in a folder, and of the folders in it.

    Hidden ones are nothing, and neither is the file of the landmarks.
    """
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            # The listing itself says what an entry is. Only links are looked up.
            if is_hidden(entry.name) or entry.name == LANDMARKS:
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                left_out.add(NO_FILE, entry.path)
            elif entry.is_dir():
                folders.append(entry.name)
            elif not is_image(entry.name):
                left_out.add(SUFFIX, entry.path)
            elif entry.is_file():
                images.append(entry.name)
            else:
                left_out.add(SPECIAL, entry.path)
    return images, folders


def member_bytes(member: zipfile.ZipInfo) -> bytes:
    """The bytes of a zip member's name, as its local header has them."""
    return member.orig_filename.encode("utf-8" if member.flag_bits & UTF8 else "cp437")


def member_path(name: bytes) -> bytes | None:
    """The path of a file in an archive, with `/` between folders; None if it is hidden."""
    if b"\\" in name and b"/" not in name:
        name = name.replace(b"\\", b"/")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if any(part.startswith(b".") or part.lower() in _SYSTEM for part in parts):
        return None
    return b"/".join(parts)


_SYSTEM = frozenset(name.encode() for name in SYSTEM)


def archive_name(name: str) -> str:
    """A person's name as a path in an archive, which `unescape_name` reads back."""
    parts = [_seen(escape_name(part)) for part in name.split("/") if part]
    return "/".join(parts) or "_"


def folder_name(name: str) -> str:
    """A person's name as the name of a folder: only what a folder cannot have is escaped."""
    return _seen(name.replace("/", "\\x2f").replace("\0", "\\x00")) or "_"


def _seen(name: str) -> str:
    """The name, with its first character escaped where it would be hidden."""
    return f"\\x{ord(name[0]):02x}{name[1:]}" if is_hidden(name) else name


def composed(name: str) -> str:
    """The name in composed Unicode (NFC); a Mac decomposes letters such as ä."""
    return unicodedata.normalize("NFC", name)


def spellings(name: str) -> list[str]:
    """What a name in a list may mean: itself, what was escaped, or folders between backslashes."""
    return list(dict.fromkeys((name, unescape_name(name), name.replace("\\", "/"))))
