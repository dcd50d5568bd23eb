"""Reads one image of a set: the same rule for training, evaluation and every tool.

An image that is not there is as bad as one that cannot be decoded: a link without a file, a folder
named like an image, a file that was deleted meanwhile, an error of the drive. Each becomes a
BadImage, which names it. Errors that may pass were retried before (data/files.py).
"""

import errno
import logging
import threading

from data.decode import decode_any, decode_into
from data.image_size import Size
from data.images import Images
from data.names import NOTES
from data.types import Pixels

log = logging.getLogger(NOTES)
# The machine lacks something; no image is bad.
MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class BadImage(ValueError):
    """An image cannot be read or decoded. The message is its file or key, and why."""


def read_encoded(images: Images, index: int) -> bytes:
    """The encoded bytes of an image; BadImage if they cannot be read."""
    try:
        return images.read(index)
    except (ValueError, OSError) as error:
        raise _bad(images, index, error) from error


def read_pixels(images: Images, index: int) -> Pixels:
    """uint8 (H,W,3) RGB of an image at its own size; BadImage if it cannot be read or decoded."""
    try:
        return decode_any(images.read(index))
    except (ValueError, OSError) as error:
        raise _bad(images, index, error) from error


def read_into(images: Images, index: int, out: Pixels) -> Size:
    """Decodes an image into out uint8 (size,size,3), and returns the height and width it had.

    BadImage if it cannot be read or decoded; then the contents of `out` are undefined.
    """
    try:
        return decode_into(images.read(index), out)
    except (ValueError, OSError) as error:
        raise _bad(images, index, error) from error


def _bad(images: Images, index: int, error: ValueError | OSError) -> Exception:
    if isinstance(error, OSError) and error.errno in MACHINE:
        return error
    where = images.describe(index)
    what = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return BadImage(what if what.startswith(where) else f"{where}: {what}")


class ResizeNotice:
    """Says once of a set that images are resized, and once that some of them are not square.

    Those may not be aligned.

    size: side in pixels that images should have. Threads may share a notice.
    """

    def __init__(self, size: int) -> None:
        self.expected = (size, size)
        self._first = {is_square: threading.Lock() for is_square in (True, False)}

    def say(self, found: Size, images: Images, index: int) -> None:
        """Say that an image had another height and width than `expected`."""
        height, width = found
        if self._first[height == width].acquire(blocking=False):
            advice = ": are these aligned? python -m tools.align aligns them"
            log.warning(
                "%s: %d×%d, resized to %d×%d%s",
                images.describe(index),
                width,
                height,
                *self.expected,
                "" if height == width else advice,
            )
