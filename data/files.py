"""Files read by many threads and processes at once, and files written whole or not at all."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class PreadFile:
    """Reads ranges of one file; no shared position, so threads and forked workers need no lock.

    `pread` and not a memory map: it lets go of the GIL while the disk seeks, fetches an image in
    one request where a map faults page by page, and a file that was truncated behind our back is an
    error instead of SIGBUS. Pickles as its path; the other process opens it again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.close = weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`, or ValueError."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(
                f"{self.path}: asked for bytes {offset}…{offset + length} of {self.size}; truncated, or a wrong index"
            )
        data = os.pread(self._fd, length, offset)
        if (
            len(data) < length
        ):  # the kernel hands out at most 2 GiB a call; anything else means the file shrank
            rest = self.read(offset + len(data), length - len(data)) if data else b""
            data += rest
            if len(data) < length:
                raise ValueError(
                    f"{self.path}: has become shorter than {offset + length} bytes since it was opened"
                )
        return data

    def __reduce__(self) -> tuple[Any, ...]:
        return PreadFile, (self.path,)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """A file that appears under its name only when complete: written beside, flushed to disk (if
    durable), renamed."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, mode) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
