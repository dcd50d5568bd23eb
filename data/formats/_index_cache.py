"""Keeps the arrays of a slow scan in a file beside the files that were scanned."""

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.files import atomic_write
from data.types import Int64

log = logging.getLogger(__name__)
VERSION = 1
Arrays = dict[str, np.ndarray]


def load_or_scan(cache: str | Path, sources: list[str], scan: Callable[[], Arrays]) -> Arrays:
    """The arrays of scan().

    They are loaded from the file `cache` if an earlier call stored them there and the sizes and
    modification times of all sources are still the same. If the file cannot be written, a message
    is logged and each opening scans again.
    """
    stamp = _stamp(sources)
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if np.array_equal(stored["stamp"], stamp):
                return {name: stored[name] for name in stored.files if name != "stamp"}
        log.info("%s: out of date, scanning again", cache)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: unreadable (%s), scanning again", cache, error)

    arrays = scan()
    try:
        with atomic_write(cache) as file:
            np.savez(file, stamp=stamp, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.info("%s: cannot be written (%s); each opening scans", cache, error.strerror)
    return arrays


def _stamp(sources: list[str]) -> Int64:
    """int64 (1 + 2·files,): the version, then size and modification time in ns of each source."""
    values = [VERSION]
    for source in sources:
        stat = os.stat(source)
        values += [stat.st_size, stat.st_mtime_ns]
    return np.array(values, np.int64)
