"""A folder with what a command has computed, which is kept until what it was made from changes."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.files import atomic_write, read_text
from data.text import escape_name, one_line, unescape_name


def begin(
    folder: Path, settings: dict[str, Any], record: str, files: Sequence[str], option: str
) -> bool:
    """Whether the folder is complete, and was made with these settings.

    Otherwise it is made ready for them: the files of other settings are removed, those of the same
    settings stay, so that a command that was stopped goes on.

    record: the name of the file that holds the settings. files: all others. option: the option that
    names the folder. ValueError if the folder is damaged, or is something else.
    """
    file, before = folder / record, dict[str, Any]()
    if file.exists():
        try:
            before = dict(json.loads(read_text(file)))
        except (ValueError, TypeError):
            raise ValueError(f"{file}: damaged; remove the folder, then it is made anew") from None
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is no index; give another folder with {option}")
    changed = [key for key in settings if before.get(key) != settings[key]]
    if not changed:
        return bool(before.get("complete"))
    if before:
        what = " and ".join(changed)
        print(one_line(f"{folder}: made with another {what}; it is made again"))
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder / record, {**settings, "complete": False})
    for name in files:
        (folder / name).unlink(missing_ok=True)
    return False


def write_settings(file: Path, settings: dict[str, Any]) -> None:
    """Write the settings. `complete` among them says whether all files are there."""
    with atomic_write(file) as out:
        out.write(json.dumps(settings, indent=1).encode())


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write one text per line, with any characters in it."""
    with atomic_write(file) as out:
        out.writelines(f"{escape_name(line)}\n".encode() for line in lines)


def read_lines(file: Path) -> list[str]:
    """What `write_lines` wrote."""
    return [unescape_name(line) for line in read_text(file).splitlines()]
