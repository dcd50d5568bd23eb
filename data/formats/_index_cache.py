"""Arrays that took a scan to make, kept beside the file they came from."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.files import atomic_write

log = logging.getLogger(__name__)
VERSION = 1


def cached(
    cache: str | Path, sources: list[str], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays of build(), or those a former call stored in `cache` if size and mtime of all
    sources still agree.

    A folder that cannot be written costs a scan at each opening (logged), nothing else.
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
    arrays = build()
    try:
        with atomic_write(cache) as file:
            np.savez(file, stamp=stamp, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.info(
            "%s: cannot be written (%s); the next opening will scan again", cache, error.strerror
        )
    return arrays


def _stamp(sources: list[str]) -> np.ndarray:
    """int64 (1 + 2·files,): version, then size and mtime in ns of each source."""
    values = [VERSION]
    for source in sources:
        stat = os.stat(source)
        values += [stat.st_size, stat.st_mtime_ns]
    return np.array(values, np.int64)
