"""Keeps the arrays of a slow scan in a file beside the files that were scanned."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.arrays import read_npz
from data.files import atomic_write
from data.text import one_line
from data.types import Int64

log = logging.getLogger(__name__)
VERSION = 2  # counts up when a scan finds other images or columns
Arrays = dict[str, np.ndarray]


def load_or_scan(
    cache: str | Path,
    sources: list[str],
    scan: Callable[[], Arrays],
    agree: Callable[[Arrays], bool],
) -> Arrays:
    """The arrays of scan().

    They are loaded from the file `cache` if an earlier call stored them there, if the sizes and
    modification times of all sources are still the same, and if the arrays agree with each other
    and with the sources. If the file cannot be written, a message is logged and each opening scans
    again.

    agree: says so. It may raise KeyError for a missing array.
    """
    stamp, where = _stamp(sources), one_line(str(cache))
    try:
        stored = read_npz(cache)
        if not np.array_equal(stored.pop("stamp"), stamp):
            log.info("%s: out of date, scanning again", where)
        elif agree(stored):
            return stored
        else:
            log.warning("%s: its arrays do not agree, scanning again", where)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s: unreadable (%s), scanning again", where, one_line(str(error)))

    arrays = scan()
    try:
        with atomic_write(cache) as file:
            np.savez(file, stamp=stamp, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.info("%s: cannot be written (%s); each opening scans", where, error.strerror)
    return arrays


def is_column(array: np.ndarray, count: int, kinds: str = "iu") -> bool:
    """Whether an array is (count,) of numpy's `kinds`: i and u are integers, S is bytes."""
    return array.shape == (count,) and array.dtype.kind in kinds


def within(array: np.ndarray, low: int, high: int) -> bool:
    """Whether all numbers of an array are low…high - 1."""
    return len(array) == 0 or (int(array.min()) >= low and int(array.max()) < high)


def _stamp(sources: list[str]) -> Int64:
    """int64 (1 + 2·files,): the version, then size and modification time in ns of each source."""
    values = [VERSION]
    for source in sources:
        stat = os.stat(source)
        values += [stat.st_size, stat.st_mtime_ns]
    return np.array(values, np.int64)
