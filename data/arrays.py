"""Arrays in .npy and .npz files of unknown origin: never unpickled, never larger than the file.

`numpy.load` allocates what a header declares. Here the declared shape is first compared with the
bytes that are there.
"""

import math
import os
import tokenize
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from data.files import open_file

# What numpy raises for headers that are no text of a dictionary.
NO_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError)
BEGIN = b"\x93NUMPY\x01\x00"  # numpy writes version 1.0 for arrays of plain numbers and bytes


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file, read-only; ValueError if the file is not exactly one array."""
    with open_file(path) as file:
        return _read_array(file, os.fstat(file.fileno()).st_size, str(path))


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file that `numpy.savez` wrote, read-only; ValueError for other files."""
    arrays = {}
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
                if not stored or sum(member.file_size for member in members) > size:
                    raise ValueError(f"{path}: holds other members than stored arrays")
                for member in members:
                    with archive.open(member) as inside:
                        name = member.filename.removesuffix(".npy")
                        where = f"{path}/{member.filename}"
                        arrays[name] = _read_array(inside, member.file_size, where)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path}: is no whole .npz file ({error})") from None
    return arrays


def _read_array(file: IO[bytes], size: int, where: str) -> np.ndarray:
    """The array in the next `size` bytes of a file."""
    if file.read(len(BEGIN)) != BEGIN:
        raise ValueError(f"{where}: does not begin as an array of numbers in .npy format")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except NO_HEADER as error:
        raise ValueError(f"{where}: its header cannot be read ({error})") from None
    rest = size - file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(
            f"{where}: declares {dtype} {shape}, but holds {rest} bytes; truncated or changed"
        )
    numbers = np.frombuffer(file.read(rest), dtype)
    return numbers.reshape(shape, order="F" if fortran else "C")
