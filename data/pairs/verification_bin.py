"""Verification `.bin` files: a pickle of (list of encoded images, list of bool), two images per
pair.

The files are untrusted, and unpickling runs whatever a pickle names. So the unpickler here is the
standard library's without most of its opcodes: those that are left make lists, tuples, bytes, text
and numbers. No name in the file is ever looked up. Known names (`numpy.dtype`, …) only select a
branch below; others are refused.
"""

import math
import mmap
import pickle
import pickletools
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from data.files import atomic_write

_NAMES = {
    **{
        f"numpy.{core}.multiarray {name}": name
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    **{f"numpy.{core}.numeric _frombuffer": "_frombuffer" for core in ("core", "_core")},
    "numpy dtype": "dtype",
    "numpy ndarray": "ndarray",
    "_codecs encode": "encode",
}
_BROKEN = ValueError, LookupError, TypeError, OverflowError, AttributeError, pickle.UnpicklingError
_DTYPE = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248]|\?|[bBhHiIlLqQefd])")
_ADMITTED = (
    *("PROTO", "FRAME", "STOP", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    *("GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "READONLY_BUFFER"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("GLOBAL", "STACK_GLOBAL"),  # through `find_class` below
)


class _Name(str):
    """A known global, e.g. "dtype"; never the object it stands for."""


class _Dtype:
    def __init__(self, code: Any) -> None:
        code = code.decode("latin-1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ValueError(f"numpy dtype {str(code)[:40]!r} is not a plain number")
        self.value = np.dtype(code)

    def build(self, state: Any) -> None:
        known = isinstance(state, tuple) and len(state) >= 2
        if not known or any(field is not None for field in state[2:5]):
            raise ValueError("numpy dtype with fields or an unexpected state")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "="):
            raise ValueError("numpy dtype with an unexpected byte order")
        self.value = self.value.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """An array whose numbers come with BUILD, or at once. Its bytes are in the file, which bounds
    its size."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise ValueError("numpy array with an unexpected state")
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: str) -> "_Array":
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise ValueError("numpy array that does not hold plain numbers")
        known = isinstance(shape, tuple) and len(shape) <= 4
        if not known or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("numpy array with an unexpected shape")
        if math.prod(shape) * dtype.value.itemsize != len(data):
            raise ValueError(f"numpy array of shape {shape} with {len(data)} bytes")
        numbers = np.frombuffer(data, dtype.value)
        self.value = numbers.reshape(shape, order="F" if order == "F" else "C")
        return self


def read_bin(path: str | Path) -> tuple[list[bytes], np.ndarray]:
    """Encoded images (2P,) and bool (P,) of a verification `.bin`.

    Files that Python 2 or numpy 1 wrote are read, too. Anything but lists, tuples, bytes, bool,
    int, str and numpy numbers is a ValueError that names what was refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a verification .bin")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty file; expected a verification .bin")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        try:
            return _pairs(_Unpickler(mapped, max_steps=100_000 + len(mapped) // 100).load())
        except RecursionError:
            raise ValueError(f"{path}: refused: nested too deep") from None
        except (EOFError, struct.error):
            raise ValueError(f"{path}: refused: truncated, it has no end mark") from None
        except _BROKEN as error:
            raise ValueError(
                f"{path}: refused: {str(error)[:300] or type(error).__name__}"
            ) from None


def write_bin(path: str | Path, images: list[bytes], same: np.ndarray) -> None:
    """Write images (2P,) and bool (P,) as other tools expect them; the file appears complete or not
    at all."""
    if len(images) != 2 * len(same):
        raise ValueError(
            f"{path}: {len(images)} images for {len(same)} pairs; expected two per pair"
        )
    with atomic_write(path) as file:
        pickle.dump(([bytes(x) for x in images], [bool(x) for x in same]), file, protocol=4)


class _Unpickler(pickle._Unpickler):
    """The unpickler written in Python, whose table of opcodes can be replaced."""

    stack: list[Any]

    def __init__(self, source: Any, *, max_steps: int) -> None:
        super().__init__(source, encoding="bytes")  # Python 2's str: bytes
        self.dispatch = _Opcodes(max_steps)  # type: ignore[assignment, misc]

    def find_class(self, module: str, name: str) -> _Name:
        """The known name. It stands for itself: nothing is imported."""
        found = _NAMES.get(f"{module} {name}")
        if found is None:
            raise ValueError(
                f"it names {module}.{name}"[:109] + "; only numpy's scalars and arrays are admitted"
            )
        return _Name(found)

    def reduce(self) -> None:
        """In place of a call."""
        args = self.stack.pop()
        self.stack[-1] = _reduce(self.stack[-1], args)

    def build(self) -> None:
        """In place of `__setstate__`."""
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, (_Dtype, _Array)):
            raise ValueError(f"state for {type(made).__name__}")
        made.build(state)


class _Opcodes:
    """What each admitted opcode does. It is asked at most `steps` times."""

    def __init__(self, steps: int) -> None:
        known = pickle._Unpickler.dispatch
        self.methods: dict[int, Any] = {
            **{code: known[code] for code in (getattr(pickle, name)[0] for name in _ADMITTED)},
            pickle.BYTEARRAY8[0]: known[pickle.BINBYTES8[0]],
            pickle.REDUCE[0]: _Unpickler.reduce,
            pickle.BUILD[0]: _Unpickler.build,
        }
        self.steps = self.left = steps

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"more than {self.steps} steps; no image list needs so many")
        if code not in self.methods:
            names = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
            raise ValueError(
                f"opcode {names.get(code, code)}; only lists, tuples, bytes, bool, int, str and "
                "numpy numbers are admitted"
            )
        return self.methods[code]


def _reduce(function: Any, args: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(args, tuple):
        raise ValueError(f"call of {type(function).__name__}")
    if function == "dtype" and args:
        return _Dtype(args[0])
    if function == "_reconstruct" and args and args[0] == "ndarray" and isinstance(args[0], _Name):
        return _Array()
    if function == "scalar" and len(args) == 2:
        return _Array().fill(args[1], args[0], (1,), "C")
    if function == "_frombuffer" and len(args) == 4:
        return _Array().fill(*args)
    latin1 = args[1:] in (("latin1",), ("latin-1",))
    if function == "encode" and latin1 and isinstance(args[0], str):
        return args[0].encode("latin-1")
    raise ValueError(f"call of {function} with unexpected arguments")


def _pairs(value: Any) -> tuple[list[bytes], np.ndarray]:
    if not (isinstance(value, (list, tuple)) and len(value) == 2):
        raise ValueError("expected two lists: images and labels")
    images, labels = (x.value if isinstance(x, _Array) else x for x in value)
    if not isinstance(images, (list, tuple)) or not isinstance(labels, (list, tuple, np.ndarray)):
        raise ValueError("expected two lists: images and labels")
    same = np.array([_label(x) for x in labels], bool)
    if len(images) != 2 * len(same) or len(same) == 0:
        raise ValueError(f"{len(images)} images for {len(same)} pairs; expected two per pair")
    return [_image(x, i) for i, x in enumerate(images)], same


def _image(value: Any, index: int) -> bytes:
    if isinstance(value, _Array) and value.value is not None and value.value.dtype == np.uint8:
        return value.value.tobytes()
    if isinstance(value, bytes):
        return value
    raise ValueError(
        f"image {index} is {type(value).__name__.lstrip('_').lower()}; expected encoded bytes"
    )


def _label(value: Any) -> bool:
    value = value.value if isinstance(value, _Array) else value
    known = isinstance(value, (bool, int, np.ndarray, np.generic)) and np.size(value) == 1
    if known and np.ravel(value)[0] in (0, 1):
        return bool(np.ravel(value)[0])
    raise ValueError(f"a pair's label is {type(value).__name__}; expected true or false")
