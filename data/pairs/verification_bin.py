"""Verification `.bin` files: a pickle of (encoded images, list of bool), two images per pair.

The files are untrusted, and unpickling runs whatever a pickle names. Therefore nothing is unpickled
here. Opcodes are parsed with the table in `pickletools`, which executes nothing, and the few that
such a file needs act on plain values. No name in the file is ever looked up. Known names
(`numpy.dtype`, …) only select a branch below; others are refused.
"""

import codecs
import math
import mmap
import pickle
import pickletools
import re
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
_DTYPE = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248]|\?|[bBhHiIlLqQefd])")
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Name(str):
    """The name of a known global, e.g. "dtype", in place of the object itself."""


class _Mark:
    """The opcode MARK on the stack."""


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
    """An array whose numbers come with BUILD, or at once.

    Its bytes are in the file, so the file's size bounds it. They are never copied, because a pickle
    may name the same bytes many times.

    content: the bytes of an encoded image, where the array holds any.
    """

    value: np.ndarray | None = None
    content: bytes | None = None

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
        if dtype.value == np.uint8 and self.value.flags.c_contiguous:
            self.content = bytes(data)
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
            return _pairs(_interpret(mapped, max_steps=100_000 + len(mapped) // 100))
        except RecursionError:
            raise ValueError(f"{path}: refused: nested too deep") from None
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(
                f"{path}: refused: {str(error)[:300] or type(error).__name__}"
            ) from None


def write_bin(path: str | Path, images: list[bytes], same: np.ndarray) -> None:
    """Write images (2P,) and bool (P,) as other tools expect them, atomically."""
    if len(images) != 2 * len(same):
        raise ValueError(
            f"{path}: {len(images)} images for {len(same)} pairs; expected two per pair"
        )
    with atomic_write(path) as file:
        pickle.dump(([bytes(x) for x in images], [bool(x) for x in same]), file, protocol=4)


def _interpret(source: Any, *, max_steps: int) -> Any:
    """The value that the opcodes describe, without recursion, copies, or calls by name.

    All values together hold no more bytes than the source.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    spare = len(source)  # bytes that texts may still become

    def to_mark() -> list[Any]:
        at = len(stack) - 1
        while at >= 0 and stack[at] is not _Mark:
            at -= 1
        if at < 0:
            raise ValueError("items without a mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for _ in range(max_steps):
        name, arg = _next_opcode(source)
        if name in _LITERALS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):  # Python 2's str: bytes
            stack.append(arg.encode("latin-1"))
        elif name == "BYTEARRAY8":
            stack.append(bytes(arg))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else arg] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            stack.append(_Mark)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("LIST", "TUPLE"):
            stack.append(to_mark() if name == "LIST" else tuple(to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = to_mark() if name == "APPENDS" else [stack.pop()]
            if type(stack[-1]) is not list:
                raise ValueError(f"append to {type(stack[-1]).__name__}")
            stack[-1].extend(items)
        elif name == "GLOBAL":
            stack.append(_known(arg))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_known(f"{module} {attribute}" if isinstance(module, str) else "?"))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(_reduce(function, args))
            # A text that is named many times would become as many copies.
            spare -= len(stack[-1]) if isinstance(stack[-1], bytes) else 0
            if spare < 0:
                raise ValueError(f"its texts become more bytes than the file's {len(source)}")
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], (_Dtype, _Array)):
                raise ValueError(f"state for {type(stack[-1]).__name__}")
            stack[-1].build(state)
        elif name == "STOP":
            return stack[-1]
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            raise ValueError(
                f"opcode {name}; only lists, tuples, bytes, bool, int, str and numpy numbers "
                "are admitted"
            )
    raise ValueError(f"more than {max_steps} steps; no image list needs so many")


def _next_opcode(source: Any) -> tuple[str, Any]:
    code = source.read(1)
    if not code:
        raise ValueError("truncated: the pickle ends before its end mark")
    opcode = _OPCODES.get(code.decode("latin-1"))
    if opcode is None:
        raise ValueError(f"not a pickle: byte {code!r} at {source.tell() - 1}")
    # Python 2 wrote the bytes of images as STRING, where the table's reader accepts only ASCII.
    if opcode.name == "STRING":
        escaped = source.readline().strip()[1:-1]
        content = codecs.escape_decode(escaped)[0]
        return opcode.name, content.decode("latin-1")
    return opcode.name, opcode.arg.reader(source) if opcode.arg else None


def _known(name: str) -> _Name:
    if name not in _NAMES:
        raise ValueError(
            f"it names {name.replace(' ', '.')[:100]}; only numpy's scalars and arrays are admitted"
        )
    return _Name(_NAMES[name])


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
    content = value.content if isinstance(value, _Array) else value
    if isinstance(content, bytes):
        return content
    raise ValueError(
        f"image {index} is {type(value).__name__.lstrip('_').lower()}; expected encoded bytes"
    )


def _label(value: Any) -> bool:
    value = value.value if isinstance(value, _Array) else value
    known = isinstance(value, (bool, int, np.ndarray, np.generic)) and np.size(value) == 1
    if known and np.ravel(value)[0] in (0, 1):
        return bool(np.ravel(value)[0])
    raise ValueError(f"a pair's label is {type(value).__name__}; expected true or false")
