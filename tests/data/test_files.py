"""A file with its final name is complete, or it does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.files import atomic_write


def test_a_crash_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def crash() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        crash()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]
    with atomic_write(path) as file:
        file.write(b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"new")]
