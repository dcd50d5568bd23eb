"""Names with line feeds, markup, formulas and control characters, in every text that is written."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.faces import open_faces
from data.images import BytesImages, FileImages
from data.pairs.lists import Pairs, from_list
from data.text import csv_cell, escape_name, markdown_text, one_line, unescape_name
from data.writers.records import write_records
from eval.benchmarks import pairs as pairs_benchmark
from eval.extract import extract, open_source
from eval.metrics.verification import roc
from eval.report.result import Curve, Result, WorstPair, histogram
from eval.report.write import write_report
from eval.stored import load_stored
from recognition.logs import Console, Metrics
from recognition.trackers import mlflow, tensorboard
from scripts._tables import csv_table, markdown_line
from tools import make_pairs

JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
EVIL = "=1+1|<b>\n# h\x1b[2J `x` $a$ _y_ [z](u) \udce9\u2028\u202e"
HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
anything = st.text(st.characters(exclude_categories=()))


@given(anything)
def test_a_line_holds_nothing_hidden_and_plain_text_is_unchanged(text: str) -> None:
    assert not HIDDEN.search(one_line(text))
    assert one_line(one_line(text)) == one_line(text)
    one_line(text).encode("utf-8")
    if not re.search(r"[^ -~]", text):
        assert one_line(text) == text


@given(anything)
def test_an_escaped_name_comes_back(name: str) -> None:
    field = escape_name(name)
    assert not HIDDEN.search(field)
    assert unescape_name(field) == name


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("agedb_30, CFP-FP (10 folds): 99.2 %", "agedb_30, CFP-FP (10 folds): 99.2 %"),
        ("a|b", r"a\|b"),
        ("<b> [x](y) `c` *d* _e_", r"\<b\> \[x\](y) \`c\` \*d\* \_e\_"),
        ("# a\n# b", r"\# a\x0a# b".replace(r"\x", r"\\x").replace(r"\\x", r"\\x")),
        ("- a", r"\- a"),
        ("-1.5", "-1.5"),
    ],
)
def test_markdown_shows_the_text_as_it_is(text: str, written: str) -> None:
    assert markdown_text(text) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *[(f"{sign}cmd|' /c calc'!A1", f"'{sign}cmd|' /c calc'!A1") for sign in "=+-@"],
        ("  =1", "'  =1"),
        ("\t=1", r"\x09=1"),
        ("-0.5", "-0.5"),
        ("+3.25%", "+3.25%"),
        (-0.5, -0.5),
        (None, None),
        (Path("=a"), "'=a"),
        ("plain", "plain"),
    ],
)
def test_no_csv_cell_is_a_formula(value: object, written: object) -> None:
    assert csv_cell(value) == written


def test_tables_of_scripts_keep_their_rows_and_columns() -> None:
    text = csv_table([{"name": EVIL, "figure": -1.5}])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows == [{"name": f"'{one_line(EVIL)}", "figure": "-1.5"}]
    assert markdown_line(["a|b\nc", r"d\|e"]) == r"| a\|b\x0ac | d\|e |"


class Texts(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def result() -> Result:
    rng = np.random.default_rng(0)
    same = rng.random(200) < 0.5
    scores = np.clip(rng.normal(0.6 * same, 0.3), -1, 1)
    return Result(
        EVIL,
        pairs_benchmark.PROTOCOL,
        {"accuracy": 99.0, EVIL: 1.0},
        settings={EVIL: EVIL},
        curves={
            EVIL: Curve.thinned(roc(scores, same)),
            "_hidden $x": Curve.thinned(roc(scores, same)),
        },
        histogram=histogram(scores, same),
        worst=(WorstPair((JPEG, JPEG), (EVIL, EVIL), 0.5, False),),
        notes=(EVIL,),
    )


def test_a_report_survives_any_name(result: Result, tmp_path: Path) -> None:
    write_report([result, Result(EVIL, result.protocol, {}, skipped=EVIL)], tmp_path)
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert not any(HIDDEN.search(line) for line in lines)
    (row,) = (line for line in lines if line.startswith("| =1"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", lines[3]))
    assert lines[0] == "# Results"
    assert sum(line.startswith(("#", "- ")) for line in lines) == 4
    page = Texts()
    page.feed((tmp_path / "report.html").read_text())
    assert "b" not in page.tags
    assert not HIDDEN.search(page.text.replace("\n", ""))
    assert one_line(EVIL) in page.text
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["name"] == EVIL


def test_logs_survive_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(tmp_path, 0)
    metrics.write(1, {f"{EVIL}/accuracy": 99.0})
    metrics.close()
    tag = tensorboard.tag(f"{EVIL}/accuracy")
    assert not re.search("[<>&\"']", tag)
    assert not HIDDEN.search(tag)
    assert re.fullmatch(r"[\w\-. /]+", mlflow.key(f"{EVIL}/accuracy"), re.ASCII)
    assert ".." not in mlflow.key("../../x").split("/")
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)[f"{EVIL}/accuracy"] == 99.0

    values = {"[red]x[/]\x1b[2J\n/accuracy": 99.0}
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        with Console(10, 0) as console:
            console.evaluated(5, values)
        assert r"[red]x[/]\x1b[2J\x0a/accuracy" in capsys.readouterr().out.replace("\n", "")


def test_names_of_identities_survive_a_record_file(tmp_path: Path) -> None:
    names = [EVIL.replace("\0", ""), "tab\there", "back\\slash\\x41", "plain", "\udce9t\udce9"]
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.jpg").write_bytes(JPEG)
    source = open_faces(tmp_path / "set")
    write_records(source, str(tmp_path / "a.rec"), size=(8, 8), progress=lambda done: None)
    found: Any = open_faces(tmp_path / "a.rec")
    assert found.names == sorted(names)


class Stub:
    """A model whose embeddings are the mean colors."""

    def __call__(self, images: Any) -> Any:
        return images.float().mean((2, 3))


def test_embeddings_of_files_with_any_name_are_found_again(tmp_path: Path) -> None:
    names = ["a\tb.jpg", "line\nfeed.jpg", "\udce9t\udce9.jpg", "u\u2028.jpg", "back\\slash.jpg"]
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).write_bytes(JPEG)
    images, found = open_source(str(tmp_path / "photos"))
    extract(Stub(), images, found, tmp_path / "e.npy", size=8, model="stub")
    stored = load_stored(tmp_path / "e.npy", tmp_path / "e.txt")
    rows = [stored.row(images.describe(index)) for index in range(len(names))]
    assert rows == list(range(len(names)))


def test_a_pair_list_escapes_names_that_would_break_its_lines(tmp_path: Path) -> None:
    names = ["a\nb.jpg", "c.jpg", "d\te.jpg", "u\u2028.jpg", "back\\x41.jpg", "\udce9t\udce9.jpg"]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(JPEG)
    one, rows = np.array([0]), np.arange(len(paths))
    pairs = Pairs(FileImages(paths), rows, np.roll(rows, 1), rows > 2)
    make_pairs.write_list(tmp_path / "out.txt", pairs, tmp_path)
    found = from_list(tmp_path / "out.txt", tmp_path)
    for mine, theirs in ((pairs.first, found.first), (pairs.second, found.second)):
        described = [found.images.describe(int(row)) for row in theirs]
        assert described == [str(paths[row]) for row in mine]
    with pytest.raises(ValueError, match="no image file of its own"):
        make_pairs.write_list(
            tmp_path / "out.txt",
            Pairs(BytesImages([JPEG] * 2, "x"), one, one + 1, one == 0),
            tmp_path,
        )
