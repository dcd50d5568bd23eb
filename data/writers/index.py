"""Writes the .idx file of a record file again, from the frames of its records."""

from pathlib import Path

import numpy as np

from data.files import PreadFile, atomic_write
from data.formats._record_index import scan_records
from data.writers._names import Progress

LINES = 1 << 16


def write_index(file: PreadFile, target: Path, *, progress: Progress) -> int:
    """Writes lines `key<TAB>offset` in the order of keys, and returns their number.

    progress: called with the number of bytes of the record file that were passed.
    """
    arrays = scan_records(file, progress)
    table = np.stack([arrays["keys"], arrays["offsets"]], axis=1)
    table = table[table[:, 0].argsort()]
    with atomic_write(target) as index:
        for start in range(0, len(table), LINES):
            pairs = table[start : start + LINES].tolist()
            index.write("".join(f"{key}\t{offset}\n" for key, offset in pairs).encode())
    return len(table)
