"""Files that many threads and processes read at once, and files that are written atomically."""

import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class PreadFile:
    """Reads ranges of one file without a shared position: threads and forked workers need no lock.

    It uses `pread` and not a memory map for three reasons. `pread` releases the GIL while the disk
    seeks. It fetches an image in one request, where a map faults page by page. A file that was
    truncated while it is open raises an error, where a map ends the process with SIGBUS.

    It pickles as its path, and the other process opens the file again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.close = weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`, or ValueError."""
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise ValueError(
                f"{self.path}: asked for bytes {offset}…{end} of {self.size}; "
                "the file is truncated or its index is wrong"
            )
        data = os.pread(self._fd, length, offset)
        # One call returns at most 2 GiB. No bytes at all mean that the file has shrunk.
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise ValueError(
                    f"{self.path}: has become shorter than {end} bytes since it was opened"
                )
            data += more
        return data

    def read_padded(self, offsets: list[int], length: int) -> bytes:
        """`length` bytes at each offset, joined. Zeros stand for bytes beyond the end."""
        pieces = [self.read(at, min(length, self.size - at)) for at in offsets]
        return b"".join([piece.ljust(length, b"\0") for piece in pieces])

    def __reduce__(self) -> tuple[Any, ...]:
        return PreadFile, (self.path,)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """A file that appears under its name only when it is complete.

    It is written under a temporary name, flushed to disk if `durable`, and then renamed. After an
    error the temporary file is removed, and an OSError names `path`.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with naming(target), open(partial, mode) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, target)
        if durable:
            sync_folder(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give `path` to an OSError that names no file, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def sync_folder(folder: str | Path) -> None:
    """Flush the names of a folder's files to disk, where its file system can do so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
