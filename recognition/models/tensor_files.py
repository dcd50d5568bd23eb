"""Tensors from files of unknown origin: .pt, .pth, .ckpt, .bin and .safetensors.

Nothing in a file is executed. A file of torch.save is a pickle, and only torch's own
`weights_only` reader reads it. Whatever else a training framework pickled beside the tensors, such
as its settings, becomes an empty mapping: its class is neither looked up nor called.

No file gets more memory than its bytes are worth: tensors that claim more are refused.
"""

import os
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open

from data.files import open_file
from recognition.checkpoint import check_records

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SAFETENSORS = ".safetensors"
_LEGACY_PICKLES = 4  # a number, a version, the byte order, and then the object itself
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1"}


class _Unread:
    """What stands for a class that only the writer of a file knows: making one gives a mapping."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


def read_tensor_file(path: Path) -> Mapping[str, Any]:
    """What a file holds: tensors, or mappings of tensors, by name, on the CPU.

    Raises ValueError in one line for a file of another kind, or one that is damaged, that names
    what may not be read, or whose tensors claim more bytes than it has.
    """
    try:
        tree = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)
    except OSError:
        raise
    except Exception as error:  # zipfile, torch and safetensors raise many kinds for damaged files
        first = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable weights file ({first[:200]})") from None
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"{path}: holds a {type(tree).__name__}, expected tensors by name; save the state dict "
            "of the network"
        )
    return tree


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with open_file(path):  # the library waits for ever at a FIFO
        pass
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_torch(path: Path) -> Any:
    with open_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch about old or unusual pickles
        size = os.fstat(file.fileno()).st_size
        if not zipfile.is_zipfile(file):
            _check_legacy(file, size)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        check_records(file, size)
        file.seek(0)
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        file.seek(0)
        with torch.serialization.safe_globals([(_Unread, name) for name in unknown]):
            return torch.load(file, map_location="cpu", weights_only=True)


def _check_legacy(file: IO[bytes], size: int) -> None:
    """Refuse a file of torch before 1.6 that asks for more bytes than it has.

    torch allocates each storage when it reads its size, before it reads its numbers. Therefore the
    sizes are found first, from the opcodes: each storage is a tuple that ends with its number of
    elements and None. No element is smaller than a byte.
    """
    file.seek(0)
    elements = 0
    for _ in range(_LEGACY_PICKLES):
        last: list[tuple[str, Any]] = []
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "BINPERSID":
                (number, count), (none, _), (end, _) = last[-3:]
                if number not in _NUMBERS or (none, end) != ("NONE", "TUPLE"):
                    raise ValueError("a storage in it is not as torch.save writes one")
                elements += max(int(count), 0)
            if opcode.name not in _PUTS:
                last = [*last[-2:], (opcode.name, argument)]
    if elements > size:
        raise ValueError(f"its tensors claim {elements:,} numbers, but it has {size:,} bytes")
