"""What a cosine says, from pairs that were scored, through results.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks.pairs import score_pairs
from eval.report.result import Result
from eval.report.write import write_report
from eval.verdict import read_evaluation


def evaluated(impostors: int, name: str = "mine") -> Result:
    """Pairs on a circle: as many genuine pairs as impostors, at angles that overlap a little."""
    rng = np.random.default_rng(impostors)
    angles = np.concatenate([rng.normal(0, 0.5, impostors), rng.normal(1.57, 0.2, impostors)])
    ones, others = np.zeros(2 * impostors), angles
    vectors = np.stack([np.cos([ones, others]), np.sin([ones, others])], -1).reshape(-1, 2)
    order = rng.permutation(2 * impostors)
    rows = np.arange(2 * impostors)[order]
    return score_pairs(
        name, vectors, rows, rows + 2 * impostors, rows < impostors, mirror=impostors > 1000
    )


def test_words_and_rates(tmp_path: Path) -> None:
    write_report([evaluated(1000), evaluated(4000, "larger")], tmp_path)
    found, _ = read_evaluation(tmp_path)
    assert found
    assert (found.name, found.impostors, found.genuine, found.mirror) == (
        "larger",
        4000,
        4000,
        True,
    )
    assert -1 < found.low < found.threshold < found.high < 1
    assert 0 <= found.false_same < found.false_same_at_most <= 1.001e-3
    assert 0 < found.false_different < found.false_different_at_most < 1
    assert found.word(found.high + 1e-9) == "same"
    assert found.word(found.low - 1e-9) == "different"
    for cosine in (found.low, found.threshold, found.high):
        assert found.word(cosine) == "near the threshold"
    assert len(found.error_lines("near the threshold")) == 2
    assert found.error_lines("different")[0].startswith('"different" is wrong for')


def test_few_pairs_are_not_sure(tmp_path: Path) -> None:
    """1,000 impostor pairs without a false accept bound the rate by 3 in 1,000."""
    write_report([evaluated(1000)], tmp_path)
    found, _ = read_evaluation(tmp_path)
    assert found
    assert found.false_same == 0
    assert found.false_same_at_most == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert "1,000 such pairs are too few to be sure of 0.1 %" in found.error_lines("same")[0]


def test_no_evaluation_is_explained(tmp_path: Path) -> None:
    assert "holds no results.json" in read_evaluation(tmp_path)[1]
    write_report([evaluated(200)], tmp_path)
    none, why = read_evaluation(tmp_path)
    assert none is None
    assert "1,000 pairs of two people" in why
    (tmp_path / "results.json").write_text('{"results": [3]}')
    with pytest.raises(ValueError, match=r"results\.json: damaged"):
        read_evaluation(tmp_path)
