"""Lists of other programs are understood, or refused with what they hold."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.faces import open_faces
from data.files import read_lines
from data.pairs.lists import read_pair_list
from data.text import decode_text, show_invisible, split_lines
from eval.extract import read_names
from eval.stored import load_stored
from scripts._lmdb import write_lmdb

FORMS = {
    "LFW": ("10\t2\nAnna\t1\t4\nAnna\t1\tBert\t2\n", [("Anna/Anna_0001", "Anna/Anna_0004")]),
    "plain": ("a/1.jpg\ta/2.jpg\t1\na/1.jpg\tb/2.jpg\t0\n", [("a/1.jpg", "a/2.jpg")]),
    "blanks": ("a/1.jpg a/2.jpg 1\na/1.jpg b/2.jpg 0\n", [("a/1.jpg", "a/2.jpg")]),
    "commas": ("a/1.jpg,a/2.jpg,1\na/1.jpg,b/2.jpg,0\n", [("a/1.jpg", "a/2.jpg")]),
    "commas and blanks": ("a/1.jpg, a/2.jpg, 1\na/1.jpg, b b.jpg, 0\n", [("a/1.jpg", "a/2.jpg")]),
    "a spreadsheet": (
        'name,imagenum1,imagenum2,\n"Smith, Anna",1,4,\nAnna,1,Bert,2\n',
        [("Smith, Anna/Smith, Anna_0001", "Smith, Anna/Smith, Anna_0004")],
    ),
    "backslashes": ("a\\1.jpg\ta\\2.jpg\t1\na\\1.jpg\tb\\2.jpg\t0\n", [("a\\1.jpg", "a\\2.jpg")]),
    "a rare character": (
        "a\u2028/1.jpg\ta/2\x85.jpg\t1\na\tb\t0\n",
        [("a\u2028/1.jpg", "a/2\x85.jpg")],
    ),
    "CALFW": ("A_1.jpg 1\nA_2.jpg 1\nA_1.jpg 0\nB_2.jpg 0\n", [("A_1.jpg", "A_2.jpg")]),
    "SLLFW": ("A\\A_1.jpg\nA\\A_2.jpg\nA\\A_1.jpg\nB\\B_2.jpg\n", [("A/A_1.jpg", "A/A_2.jpg")]),
}
ENCODED: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda text: text.encode(),
    "with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "no last line feed": lambda text: text.rstrip("\n").encode(),
    "UTF-16": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16 big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ENCODED)
def test_pair_lists_of_other_programs(form: str, encoding: str, tmp_path: Path) -> None:
    text, genuine = FORMS[form]
    if form == "a rare character" and encoding == "UTF-16 without a mark":
        text = text.replace("\u2028", "\u0428")  # has no zero byte: rare text needs the mark
    (tmp_path / "pairs.txt").write_bytes(ENCODED[encoding](text))
    pairs, same = read_pair_list(tmp_path / "pairs.txt")
    assert same.tolist() == [True, False]
    if "\u0428" not in text:
        assert [pairs[0]] == genuine


def test_a_line_that_is_not_understood_is_shown_with_what_cannot_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("Anna\xa01 Bert\u200b 4\n")
    with pytest.raises(ValueError, match=r"line 1: 'Anna\\xa01' 'Bert\\u200b' '4'; expected"):
        read_pair_list(path)
    path.write_bytes(b"PK\3\4\0\0\0\0\0\0 no text")
    with pytest.raises(ValueError, match="is no text in UTF-8 or UTF-16"):
        read_pair_list(path)


def test_names_that_are_not_utf8_stay_as_the_system_has_them(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xe9t\xe9.jpg\n")
    assert read_names(tmp_path / "names.txt") == ["\udce9t\udce9.jpg"]


def test_lists_of_names_end_at_a_tab_or_at_a_comma(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    for text, names in (
        ("a/1.jpg\t0.5\nb/2.jpg\t0.7\n", ["a/1.jpg", "b/2.jpg"]),
        ("a/1.jpg,0.5\nb/2.jpg,0.7\n", ["a/1.jpg", "b/2.jpg"]),
        ("Smith, A/1.jpg\nb/2.jpg\n", ["Smith, A/1.jpg", "b/2.jpg"]),
    ):
        for encode in ENCODED.values():
            path.write_bytes(encode(text))
            assert read_names(path) == names


def test_names_of_stored_embeddings(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.eye(2, dtype=np.float32))
    for encode in ENCODED.values():
        (tmp_path / "e.txt").write_bytes(encode("Zoë\\1.jpg\nb\\2.jpg\n"))
        stored = load_stored(tmp_path / "e.npy", tmp_path / "e.txt")
        assert [stored.row("photos/Zoe\u0308/1.jpg"), stored.row("b/2.png")] == [0, 1]


def test_lists_of_an_lmdb(tmp_path: Path) -> None:
    source = open_faces("synthetic:identities=2,images=2,size=24")
    write_lmdb(source, tmp_path)
    (path,) = tmp_path.glob("*kv.txt")
    text = path.read_text()
    for changed in (
        codecs.BOM_UTF8 + text.encode(),
        text.replace("\n", "\r\n").encode(),
        text.replace(" ", ",").encode(),
    ):
        path.write_bytes(changed)
        faces = open_faces(tmp_path)
        assert [faces.read(row) for row in range(4)] == [source.read(row) for row in range(4)]
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="is UTF-16; save it as UTF-8"):
        open_faces(tmp_path)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n")), min_size=1))
def test_lines_end_only_where_lines_end(lines: list[str]) -> None:
    lines[-1] += "."
    for end in ("\n", "\r\n", "\r"):
        assert split_lines(end.join(lines)) == lines
        assert split_lines(end.join(lines) + end) == lines


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_any_bytes_without_zeros_are_a_text(data: bytes) -> None:
    if not data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        assert decode_text(data, "a").encode("utf-8", "surrogateescape") == data


def test_show_invisible_leaves_what_can_be_seen() -> None:
    assert show_invisible("Zoë Ångström, 王-小明 #1") == "Zoë Ångström, 王-小明 #1"
    assert show_invisible("a\u0301\ufeff\t\xad") == "a\\u0301\\ufeff\\x09\\xad"


def test_an_empty_file_has_no_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert read_lines(tmp_path / "a") == []
