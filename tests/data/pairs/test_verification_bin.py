"""Verification .bin files: genuine ones are read, and hostile ones are refused, not executed."""

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.pairs.verification_bin import read_bin, write_bin

SMALL = Path(__file__).parents[3] / "../shared/data/faces/small_lfw.bin"
IMAGES = [bytes(range(256)), b"\xff\xd8\xff\x00'\"\\\n", b"x" * 300, b"y" * 70_000]
SAME = [True, False]


class Calls:
    """An object whose pickle is a call of `function` with `args`."""

    def __init__(self, function: object, *args: object, state: object = None) -> None:
        self.how = (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.how


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "form", ["bytes", "arrays", "bytearray-free tuple", "numpy labels", "label array"]
)
def test_genuine_forms(tmp_path: Path, protocol: int, form: str) -> None:
    images: object = IMAGES
    same: object = SAME
    if form == "arrays":
        images = [np.frombuffer(x, np.uint8) for x in IMAGES]
    elif form == "bytearray-free tuple":
        images, same = tuple(IMAGES), tuple(SAME)
    elif form == "numpy labels":
        same = [np.bool_(x) for x in SAME]
    elif form == "label array":
        same = np.array(SAME)
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps((images, same), protocol))
    found, labels = read_bin(path)
    assert found == IMAGES
    assert labels.tolist() == SAME


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_files_of_python_2(tmp_path: Path, protocol: int) -> None:
    """Opcodes as Python 2 writes them.

    str is a byte string, numpy lives in numpy.core, and labels are I01 or \\x88.
    """
    out = io.BytesIO()
    out.write(b"\x80\x02" if protocol == 2 else b"")
    out.write(b"((lp0\n" if protocol == 0 else b"(]q\x00(")
    for image in IMAGES:
        if protocol == 0:
            out.write(b"S" + repr(image)[1:].encode("ascii") + b"\na")
        else:
            out.write(b"T" + struct.pack("<i", len(image)) + image)
    labels = (b"(lp1\nI01\naI00\natp2\n.", b"e]q\x01(I01\nI00\net.", b"e]q\x01(\x88\x89et.")[
        protocol
    ]
    out.write(labels)
    path = tmp_path / "set.bin"
    path.write_bytes(out.getvalue())
    found, same = read_bin(path)
    assert found == IMAGES
    assert same.tolist() == SAME


def test_numpy_1_and_2_names(tmp_path: Path) -> None:
    dumped = pickle.dumps(
        ([np.frombuffer(x, np.uint8) for x in IMAGES], [np.bool_(x) for x in SAME]), 2
    )
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    path = tmp_path / "set.bin"
    for content in (dumped.replace(new, old), dumped.replace(new, old).replace(old, new)):
        path.write_bytes(content)
        assert read_bin(path)[0] == IMAGES


@pytest.mark.skipif(not SMALL.exists(), reason="needs ../shared")
def test_a_genuine_file() -> None:
    images, same = read_bin(SMALL)
    assert len(images) == 20
    assert same.all()
    assert all(image[:3] == b"\xff\xd8\xff" for image in images)


def test_written_files_are_read_by_pickle_users(tmp_path: Path) -> None:
    write_bin(tmp_path / "set.bin", IMAGES, np.array(SAME))
    assert (tmp_path / "set.bin").read_bytes() == pickle.dumps((IMAGES, SAME), 4)
    assert os.listdir(tmp_path) == ["set.bin"]


def hostile() -> dict[str, bytes]:
    """Pickles that run something, build something foreign, lie about sizes, or are cut off."""
    touch = "touch RAN"
    made: dict[str, bytes] = {}
    for protocol in range(6):
        made[f"os.system, protocol {protocol}"] = pickle.dumps(Calls(os.system, touch), protocol)
        made[f"eval in a list of images, protocol {protocol}"] = pickle.dumps(
            ([b"x", Calls(eval, "__import__('os').system('touch RAN')")], [True]), protocol
        )
        made[f"exec as a label, protocol {protocol}"] = pickle.dumps(
            ([b"x", b"y"], [Calls(exec, "open('RAN', 'w')")]), protocol
        )
        made[f"object array, protocol {protocol}"] = pickle.dumps(
            (np.array([Calls(os.system, touch), 1], dtype=object), [True]), protocol
        )
    reconstruct = np.zeros(1).__reduce__()[0]
    array = (np.ndarray, (0,), b"b")
    made |= {
        "numpy reconstruct of a foreign type": pickle.dumps(
            Calls(reconstruct, dict, (0,), b"b"), 2
        ),
        "numpy reconstruct with a foreign state": pickle.dumps(
            Calls(reconstruct, *array, state=Calls(os.system, touch)), 2
        ),
        "numpy scalar of a foreign call": pickle.dumps(
            Calls(np.float64(1).__reduce__()[0], Calls(os.system, touch), b"12345678"), 2
        ),
        "numpy dtype object": pickle.dumps(([np.dtype("O")] * 2, [True]), 2),
        "numpy dtype with fields": pickle.dumps(np.zeros(2, [("a", "u1")]), 2),
        "numpy load": pickle.dumps(Calls(np.load, "RAN", None, True), 4),
        "numpy by a longer path": b"cnumpy\nos.system\n(S'touch RAN'\ntR.",
        "codecs of another name": b"c_codecs\ndecode\n(S'touch RAN'\nS'rot13'\ntR.",
        "codecs encode to another code": b"c_codecs\nencode\n(Vtouch\nVzlib\ntR.",
        "builtins getattr": pickle.dumps(Calls(getattr, [], "append"), 4),
        "a class by INST": b"(S'touch RAN'\nios\nsystem\n.",
        "a class by OBJ": b"(cos\nsystem\nS'touch RAN'\no.",
        "a class by NEWOBJ": b"\x80\x02csubprocess\nPopen\nU\x09touch RAN\x85\x81.",
        "a class by NEWOBJ_EX": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93"
        b"\x8c\x09touch RAN\x85}\x92.",
        "extension code": b"\x80\x02\x82\x01.",
        "persistent id": b"PRAN\n.",
        "persistent id of an object": b"]Q.",
        "BUILD on a list": b"]}b.",
        "attributes by BUILD": b"cnumpy\nndarray\n}S'__reduce__'\ncos\nsystem\nsb.",
        "dictionary": pickle.dumps({"images": IMAGES}, 2),
        "set": pickle.dumps({1, 2}, 4),
        "ordered dictionary": pickle.dumps(OrderedDict(a=1), 2),
        "float": pickle.dumps(([1.5, 2.5], [True]), 2),
        "call of bytes": b"U\x05hello(tR.",
        "array bytes that lie": b"\x80\x02cnumpy\ndtype\nU\x02f8\x85R"
        b"cnumpy.core.multiarray\nscalar\nh\x00.",
        "a shape of terabytes": pickle.dumps(np.zeros(4, np.uint8), 2).replace(
            b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"
        ),
        "bytes that promise exabytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
        "long that promises gigabytes": b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"\x01.",
        "frame that promises exabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        "endless lists": b"]" * 3_000_000 + b".",
        "deep lists": b"]" * 90_000 + b"a" * 89_999 + b".",
        "doubling lists": b"]" + b"(h\x00h\x00l\x94" * 1000 + b".",
        "nothing on the stack": b"a.",
        "no mark": b"Nt.",
        "unknown memo": b"h\x07.",
        "digits": b"L" + b"9" * 100_000 + b"L\n.",
        "no pickle": b"\xff\xd8\xff\xe0 not a pickle",
        "empty": b"",
        "one list": pickle.dumps(IMAGES, 4),
        "odd number of images": pickle.dumps((IMAGES[:3], SAME), 4),
        "names of files": pickle.dumps((["a.jpg", "b.jpg"], [True]), 4),
        "label that is a number": pickle.dumps((IMAGES, [7, 0]), 4),
    }
    genuine = pickle.dumps(([np.frombuffer(x, np.uint8) for x in IMAGES], SAME), 2)
    for cut in (1, 2, 20, 100, 500, len(genuine) // 2, len(genuine) - 1):
        made[f"cut after {cut}"] = genuine[:cut]
    return made


@pytest.mark.parametrize("kind", hostile())
def test_hostile_files_are_refused_and_run_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "set.bin"
    path.write_bytes(hostile()[kind])
    with pytest.raises(ValueError, match=r"set\.bin: (refused: .|empty file)"):
        read_bin(path)
    assert os.listdir(tmp_path) == ["set.bin"], "something ran"


def test_the_refusal_names_what_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    for content, name in (
        (pickle.dumps(Calls(os.system, "true")), "posix.system"),
        (pickle.dumps({}), "EMPTY_DICT"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_bin(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"):
        read_bin(tmp_path / "nowhere.bin")
