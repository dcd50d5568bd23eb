"""Files that many threads and processes read at once, and files that are written atomically."""

import errno
import hashlib
import os
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from data.limits import MOST_TEXT_BYTES
from data.text import decode_text, split_lines

Read = TypeVar("Read")
# Errors of disks and network drives that a second try may not meet.
PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.ENOTCONN}
)


def open_regular(path: str | Path) -> int:
    """A descriptor for reading a file; ValueError for a FIFO, a socket, a device or a folder.

    It never waits. A plain `open` of a FIFO waits until another process writes into it.
    """
    try:
        # Systems other than POSIX have neither flag.
        flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        fd = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise ValueError(f"{path}: is a socket; expected a file") from None
        raise
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise ValueError(f"{path}: is a {_kind(mode)}; expected a file")
    return fd


def open_file(path: str | Path) -> IO[bytes]:
    """As `open(path, "rb")`, for what `open_regular` accepts."""
    return os.fdopen(open_regular(path), "rb")


def read_file(path: str | Path, most: int) -> bytes:
    """All bytes of a file; ValueError if it has more than `most` or is no regular file."""
    return retried(lambda: _read_file(path, most))


def retried(read: Callable[[], Read]) -> Read:
    """What `read` returns, which is called once more after an error that may pass."""
    try:
        return read()
    except OSError as error:
        if error.errno not in PASSING:
            raise
    return read()


def _read_file(path: str | Path, most: int) -> bytes:
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > most:
            raise ValueError(f"{path}: has {size:,} bytes, more than the limit of {most:,}")
        return _read_at(fd, 0, size, path)
    finally:
        os.close(fd)


def read_text(path: str | Path) -> str:
    """The text of a file of at most MOST_TEXT_BYTES; see `decode_text`."""
    return decode_text(read_file(path, MOST_TEXT_BYTES), str(path))


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file of at most MOST_TEXT_BYTES; see `split_lines`."""
    return split_lines(read_text(path))


def is_special(path: str | Path) -> bool:
    """Whether the path, or what a link there points to, is a FIFO, a socket or a device."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "FIFO"), (stat.S_ISDIR, "folder"), (stat.S_ISSOCK, "socket"))
    return next((name for test, name in kinds if test(mode)), "device")


def _read_at(fd: int, offset: int, length: int, path: str | Path) -> bytes:
    """Exactly `length` bytes at `offset`; ValueError if the file ends before."""
    data = _pread(fd, length, offset, path)
    # One call returns at most 2 GiB. No bytes at all mean that the file has shrunk.
    while len(data) < length:
        more = _pread(fd, length - len(data), offset + len(data), path)
        if not more:
            raise ValueError(
                f"{path}: has become shorter than {offset + length} bytes since it was opened"
            )
        data += more
    return data


def _pread(fd: int, length: int, offset: int, path: str | Path) -> bytes:
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


class PreadFile:
    """Reads ranges of one file without a shared position: threads and forked workers need no lock.

    It uses `pread` and not a memory map for three reasons. `pread` releases the GIL while the disk
    seeks. It fetches an image in one request, where a map faults page by page. A file that was
    truncated while it is open raises an error, where a map ends the process with SIGBUS.

    It pickles as its path, and the other process opens the file again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = open_regular(path)
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
        try:
            return _read_at(self._fd, offset, length, self.path)
        except OSError as error:
            if error.errno not in PASSING:
                raise
        return self._read_again(offset, length)

    def _read_again(self, offset: int, length: int) -> bytes:
        """Opens the file for this one read: its descriptor may be stale."""
        fd = open_regular(self.path)
        try:
            if os.fstat(fd).st_size != self.size:
                raise ValueError(f"{self.path}: another file took its place since it was opened")
            return _read_at(fd, offset, length, self.path)
        finally:
            os.close(fd)

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


def check_new(folder: str | Path) -> None:
    """FileExistsError if something has the name of a folder that is to be made."""
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder}: is there already; give the name of a new folder")


@contextmanager
def new_folder(folder: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty folder to fill, which appears under its name only when it is complete.

    Its files are flushed to disk if `durable`. After an error nothing is left of it. Raises
    FileExistsError if something has the name already.
    """
    target = Path(folder)
    check_new(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*") if durable else ():
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        partial.rename(target)
        if durable:
            sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
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


def file_digest(path: str | Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


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
