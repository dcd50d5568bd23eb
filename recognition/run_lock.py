"""One run, one folder: a lock that the kernel drops when its process ends, also by kill -9."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recognition.config import ConfigError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, in `lock`, which names the process and its machine.

    Raises ConfigError, which names the holder, if another process holds it. Where the file system
    has no locks, it says so and goes on.
    """
    with open(folder / "lock", "a+") as file:
        if _lock(file, folder):
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
        else:
            print(f"{folder}: its file system has no locks; start no second run in it", flush=True)
        yield


def check_unlocked(folder: Path) -> None:
    """Raise ConfigError, which names the holder, if a run is going on in an existing folder."""
    if (folder / "lock").exists():
        with open(folder / "lock", "a+") as file:
            _lock(file, folder)


def _lock(file: IO[str], folder: Path) -> bool:
    """Lock an open file until it is closed; False where its file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"run.output: {folder} is in use by {_holder(file)}; wait until it ends, stop it, or "
            "choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        written = json.loads(file.read())
        return f"process {int(written['pid'])} on {written['host']}"
    except (ValueError, TypeError, KeyError):
        return "another process"
