"""The threshold against mixtures whose shares are known."""

import numpy as np
import pytest

from eval.cleaning.cut import find_cut


def literal_cut(scores: np.ndarray, wrong: np.ndarray, precision: float) -> tuple[float, float]:
    """Share and threshold, one candidate after the other."""
    shares, kept = [], -np.inf
    for t in [*scores, *wrong]:
        below, wrong_below = np.mean(scores <= t), np.mean(wrong <= t)
        if wrong_below >= 0.2:
            count = np.count_nonzero(scores <= t)
            shares.append((count + 2 * np.sqrt(count + 1)) / len(scores) / wrong_below)
    share = min(1.0, *shares)
    most = -np.inf
    for t in np.sort(scores):
        below, wrong_below = np.mean(scores <= t), np.mean(wrong <= t)
        gain = share * wrong_below - below / 4
        if wrong_below > 0 and share * wrong_below / below >= precision and gain > most - 1e-12:
            most, kept = gain, t
    return share, kept


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_finds_the_share_and_keeps_its_promise(share: float) -> None:
    rng = np.random.default_rng(0)
    is_wrong = rng.random(20_000) < share
    scores = np.where(is_wrong, rng.normal(-1, 0.5, 20_000), rng.normal(1.5, 0.5, 20_000))
    cut = find_cut(scores, rng.normal(-1, 0.5, 20_000), 0.9)
    found = scores <= cut.threshold
    assert cut.share == pytest.approx(share, rel=0.12)
    assert is_wrong[found].mean() >= 0.9  # the kinds lie apart
    assert cut.recall == pytest.approx(found[is_wrong].mean(), abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_slow_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, wrong = rng.normal(0.5, 1, 200).round(1), rng.normal(-1, 1, 150).round(1)
    cut = find_cut(scores, wrong, 0.6)
    share, threshold = literal_cut(scores, wrong, 0.6)
    assert cut.share == pytest.approx(share)
    assert cut.threshold == pytest.approx(threshold)


def test_nothing_is_wrong() -> None:
    rng = np.random.default_rng(0)
    scores, wrong = rng.normal(5, 0.5, 5000), rng.normal(-1, 0.5, 5000)
    cut = find_cut(scores, wrong, 0.9)
    assert np.count_nonzero(scores <= cut.threshold) <= 2
    assert cut.share <= 1e-3
    assert find_cut(scores, np.empty(0), 0.9).threshold == -np.inf
