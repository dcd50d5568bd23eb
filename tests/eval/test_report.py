"""The files of a report: their figures, no need of other files, and no HTML from file names."""

import base64
import gc
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from eval.benchmarks import pairs, templates
from eval.metrics.verification import roc, tar_at_far
from eval.report.published import published_figure, published_row, published_rows
from eval.report.result import Curve, Protocol, Result, WorstPair, histogram
from eval.report.tables import tables
from eval.report.write import write_report


@pytest.fixture
def results() -> list[Result]:
    rng = np.random.default_rng(0)
    same = rng.random(400) < 0.5
    scores = np.clip(rng.normal(0.6 * same, 0.3), -1, 1)
    face = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    lfw = Result(
        "lfw",
        pairs.PROTOCOL,
        {"accuracy": 99.2833333, "accuracy_std": 0.4349329, "tar@0.001": float("nan"), "auc": 99.9},
        settings={"mirror": True, "fold_accuracy": [99.0, 99.5]},
        curves={"lfw": Curve.thinned(roc(scores, same))},
        histogram=histogram(scores, same),
        worst=(WorstPair((face, face), ("/x/<b>a&.jpg", "/y/b.jpg"), 0.5, False),),
        notes=("folds are unfair",),
    )
    ijb = Result("IJB-C", templates.PROTOCOL, {"nearest_tar@0.0001": 96.0})
    return [lfw, ijb, Result("agedb_30", pairs.PROTOCOL, {}, skipped="/nowhere.bin: no such file")]


def test_files_hold_the_figures(results: list[Result], tmp_path: Path) -> None:
    write_report(results, tmp_path / "new/run", published="ms1mv3_r100_fastface")
    folder = tmp_path / "new/run"
    plots = ["roc.png", "scores.png"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "report.html",
        "results.json",
        "results.md",
        *plots,
    ]
    assert all((folder / plot).read_bytes()[:4] == b"\x89PNG" for plot in plots)
    record = json.loads((folder / "results.json").read_text())
    assert record["results"][0]["metrics"] == {
        "accuracy": 99.283333,
        "accuracy_std": 0.434933,
        "tar@0.001": None,
        "auc": 99.9,
    }
    assert record["results"][2]["skipped"] == "/nowhere.bin: no such file"
    text = (folder / "results.md").read_text()
    assert "| lfw | 99.283 ± 0.435 | 99.80 |" in text
    assert "agedb_30, skipped: /nowhere.bin: no such file" in text
    assert "lfw, warning: folds are unfair" in text
    assert "- lfw: pairs, ten folds, mirror yes\n" in text
    assert "| IJB-C | 96.000 |" in text
    assert [result["protocol"] for result in record["results"]] == ["pairs", "templates", "pairs"]
    assert "arXiv 2404.11118" in text


def test_page_is_self_contained_and_escapes_names(results: list[Result], tmp_path: Path) -> None:
    write_report(results, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert set(re.findall(r"(?:src|href)='(.{11})", text)) == {"data:image/"}
    assert "http" not in re.sub(r"base64,[^']*", "", text)
    assert "<b>" not in text
    assert "<br>x/&lt;b&gt;a&amp;.jpg<br>y/b.jpg<" in text  # person and file
    assert text.count("data:image/jpeg") == 2
    for plot in ("roc.png", "scores.png"):  # drawn once, and embedded
        assert base64.b64encode((tmp_path / plot).read_bytes()).decode() in text
    assert "folds are unfair" in text
    assert "no such file" in text


def test_a_page_with_faces_says_so_before_the_first_of_them(
    results: list[Result], tmp_path: Path
) -> None:
    write_report(results, tmp_path / "faces")
    text = (tmp_path / "faces/report.html").read_text()
    assert text.index("This page shows faces") < text.index("<table") < text.index("image/jpeg")
    write_report(results[1:], tmp_path / "none")
    assert "This page shows faces" not in (tmp_path / "none/report.html").read_text()


def test_no_plot_stays_in_memory(results: list[Result], tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        write_report(results, tmp_path)
        assert not [found for found in gc.get_objects() if type(found) is Figure]
    finally:
        gc.enable()


def test_no_figure_is_left_out_of_the_tables() -> None:
    protocol = Protocol("new", "a new one", {"b": "B", "a": "A", "c": "C"}, unlisted=("u",))
    figures = {"a": 1.0, "a_std": 0.5, "u": 2.0, "u_std": 0.1, "x": 3.0, "x_std": 0.2, "y_std": 4.0}
    found = tables([Result("one", protocol, figures), Result("two", protocol, {"b": 5.0})])
    assert found == [
        [
            ["benchmark", "B", "A", "x", "y_std"],
            ["one", "", "1.000 ± 0.500", "3.000 ± 0.200", "4.000"],
            ["two", "5.000", "", "", ""],
        ]
    ]
    same_name = Protocol("new", "another", {"a": "first"})
    assert len(tables([Result("one", protocol, {"a": 1}), Result("two", same_name, {"a": 1})])) == 2


def test_a_wide_table_of_few_results_is_turned() -> None:
    protocol = Protocol("wide", "wide", {str(i): f"column {i}" for i in range(10)})
    figures = {str(i): float(i) for i in range(10)}
    (turned,) = tables([Result("one", protocol, figures)])
    assert turned[:2] == [["benchmark", "one"], ["column 0", "0.000"]]
    (upright,) = tables([Result(str(i), protocol, figures) for i in range(7)])
    assert upright[0][:2] == ["benchmark", "column 0"]


def test_published_figures_have_sources_and_plausible_values() -> None:
    for name, row in published_rows().items():
        assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+){2,3}", name), name
        assert row["source"], name
        for figures in (value for value in row.values() if isinstance(value, dict)):
            assert all(30 < figure <= 100 for figure in figures.values())
    row = published_row("webface12m_ir101_adaface")
    assert published_figure(row, "CFP-FP", "accuracy") == 99.24
    assert published_figure(row, "ijbc", "nearest_tar@0.0001") == 97.72
    assert published_figure(row, "rfw", "accuracy") is None
    with pytest.raises(ValueError, match="did you mean ms1mv3_r100_fastface"):
        published_row("ms1mv3_r10_fastface")


def test_thinned_curves_keep_the_operating_points() -> None:
    rng = np.random.default_rng(1)
    same = rng.random(50_000) < 0.1
    curve = roc(rng.normal(same, 1), same)
    thin = Curve.thinned(curve)
    assert len(thin.far) <= 2000 < len(curve.far)
    for far in (1e-4, 1e-3, 1e-2, 1e-1):
        at = np.searchsorted(thin.far, far, side="right") - 1
        assert thin.tar[at] == pytest.approx(tar_at_far(curve, far), abs=2e-3)


def test_histogram_counts_every_pair() -> None:
    scores, same = np.array([-1.0000001, 0.0, 1.0000001, 0.5]), np.array([False, False, True, True])
    counts = histogram(scores, same)
    assert (counts.genuine.sum(), counts.impostors.sum()) == (2, 2)
    assert counts.impostors[0] == counts.genuine[-1] == 1
