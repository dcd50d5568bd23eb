"""The report's files: figures in them, nothing outside needed, nothing taken as HTML that came from
a file name."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.metrics.verification import roc, tar_at_far
from eval.report.published import published_figure, published_row, published_rows
from eval.report.result import Curve, Result, WorstPair, histogram
from eval.report.tables import write_report


@pytest.fixture
def results() -> list[Result]:
    rng = np.random.default_rng(0)
    same = rng.random(400) < 0.5
    scores = np.clip(rng.normal(0.6 * same, 0.3), -1, 1)
    face = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    lfw = Result(
        "lfw",
        {"accuracy": 99.2833333, "accuracy_std": 0.4349329, "tar@0.001": float("nan"), "auc": 99.9},
        settings={"protocol": "pairs, ten folds", "mirror": True, "fold_accuracy": [99.0, 99.5]},
        curves={"lfw": Curve.thinned(roc(scores, same))},
        histogram=histogram(scores, same),
        worst=(WorstPair((face, face), ("/x/<b>a&.jpg", "/y/b.jpg"), 0.5, False),),
        notes=("folds are unfair",),
    )
    ijb = Result("IJB-C", {"nearest_tar@0.0001": 96.0}, settings={"protocol": "templates, 1:1"})
    return [lfw, ijb, Result("agedb_30", {}, skipped="/nowhere.bin: no such file")]


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
        "accuracy": 99.283333, "accuracy_std": 0.434933, "tar@0.001": None, "auc": 99.9,
    }  # fmt: skip
    assert record["results"][2]["skipped"] == "/nowhere.bin: no such file"
    text = (folder / "results.md").read_text()
    assert "| lfw | 99.283 ± 0.435 | 99.80 |" in text
    assert "agedb_30, skipped: /nowhere.bin: no such file" in text
    assert "lfw, warning: folds are unfair" in text
    assert "arXiv 2404.11118" in text


def test_page_is_self_contained_and_escapes_names(results: list[Result], tmp_path: Path) -> None:
    write_report(results, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert set(re.findall(r"(?:src|href)='(.{11})", text)) == {"data:image/"}
    assert "http" not in re.sub(r"base64,[^']*", "", text)
    assert "<b>" not in text
    assert "&lt;b&gt;a&amp;" in text
    assert text.count("data:image/jpeg") == 2
    assert "folds are unfair" in text
    assert "no such file" in text


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
