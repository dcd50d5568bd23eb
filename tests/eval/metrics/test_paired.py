"""Intervals of paired differences: literal slow resamples, textbook errors, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.metrics import paired
from eval.metrics import verification as metrics


def _repeated(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each value as often as it was drawn."""
    return np.repeat(values, counts.astype(int))


@pytest.mark.parametrize("far", [0.001, 0.02, 0.3, 1.0])
def test_figures_of_a_resample_are_those_of_the_repeated_pairs(far: float) -> None:
    rng = np.random.default_rng(1)
    same = rng.random(300) < 0.4
    distances = np.where(same, 0.9, 1.2) + 0.3 * rng.random(300).round(1)  # many are equal
    counts = np.stack([np.ones(300), *rng.integers(0, 4, (3, 300))])
    # `tar_at_far` allows a share of the impostors that are drawn, and their number is kept.
    for row in counts[1:]:
        impostors = np.flatnonzero(~same)
        row[impostors] = np.bincount(
            rng.choice(len(impostors), len(impostors)), None, len(impostors)
        )
    tar = paired.tar_at_far(distances, same, far)(counts)
    area = paired.auc(distances, same)(counts)
    right = metrics.right_decisions(distances, same)
    share = paired.accuracy(right)(counts)
    for place, row in enumerate(counts):
        curve = metrics.roc(-_repeated(row, distances), _repeated(row, same))
        assert tar[place] == pytest.approx(100 * metrics.tar_at_far(curve, far))
        assert area[place] == pytest.approx(100 * metrics.auc(curve))
        assert share[place] == pytest.approx(100 * _repeated(row, right).mean())


def test_resamples_keep_the_kinds_and_all_figures_see_the_same_pairs() -> None:
    same = np.arange(40) < 15
    seen: list[np.ndarray] = []

    def figure(counts: np.ndarray) -> np.ndarray:
        seen.append(counts)
        return counts[:, 0]

    found = paired.resample([figure, figure], same, count=50)
    assert found.shape == (2, 51)
    assert np.array_equal(found[0], found[1])
    counts = np.concatenate(seen[2::2])
    assert (counts[:, same].sum(1) == 15).all()
    assert (counts[:, ~same].sum(1) == 25).all()
    assert len(np.unique(counts, axis=0)) > 40


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    right, same = rng.random((2, 30)) < 0.5
    whole = paired.resample([paired.accuracy(right)], same, count=20)
    monkeypatch.setattr(paired, "AT_ONCE", 90)
    assert np.array_equal(paired.resample([paired.accuracy(right)], same, count=20), whole)


def test_interval_of_one_seed_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(3)
    one = rng.random((1, 3000)) < 0.86
    other = np.where(rng.random((1, 3000)) < 0.9, one, rng.random((1, 3000)) < 0.7)
    found = paired.accuracy_difference(one, other)
    gain = 100 * (one[0].astype(float) - other[0])
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    assert found.value == pytest.approx(gain.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert (found.high + found.low) / 2 == pytest.approx(found.value, abs=0.25 * error)


def test_spread_of_the_seeds_is_the_unbiased_one() -> None:
    # All pairs are alike, so that only the seeds differ: the error is that of a mean of 4 numbers.
    figures = np.repeat(np.array([[80.0], [82.0], [83.0], [87.0]]), 4001, axis=1)
    found = paired.difference(figures, np.full((1, 4001), 80.0))
    error = figures[:, 0].std(ddof=1) / 2
    assert found.value == 3.0
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert paired.difference(figures, figures).low < 0 < paired.difference(figures, figures).high


@pytest.mark.parametrize(("seeds", "spread"), [((1, 1), 0.0), ((3, 5), 0.05), ((5, 5), 0.1)])
def test_the_interval_covers_the_truth(seeds: tuple[int, int], spread: float) -> None:
    """Decisions by hardness of the pair + quality of the seed + noise, all normal."""

    def expected(quality: float) -> float:
        total = math.sqrt(1 + spread**2 + 0.6**2)
        return 50 * (1 + math.erf(quality / total / math.sqrt(2)))

    covered = 0
    for trial in range(40):
        rng = np.random.default_rng([trial, *seeds])
        hardness = rng.normal(size=400)
        one, other = (
            quality
            + rng.normal(0, spread, (count, 1))
            + hardness
            + rng.normal(0, 0.6, (count, 400))
            > 0
            for quality, count in zip((1.2, 1.0), seeds, strict=True)
        )
        found = paired.accuracy_difference(one, other)
        covered += found.low <= expected(1.2) - expected(1.0) <= found.high
    # 95 % of 40 is 38; fewer than 34 would have a probability of 1 in 100.
    assert covered >= 34


def test_seeds_with_pairs_of_their_own_are_drawn_together() -> None:
    rng = np.random.default_rng(5)
    one = rng.random((3, 500)) < np.array([[0.7], [0.8], [0.9]])
    assert paired.seedwise_difference(one, one) == paired.Interval(0.0, 0.0, 0.0)
    # Each seed of the other row has 20 decisions less: its spread over seeds is not a difference.
    other = one.copy()
    for row in other:
        row[np.flatnonzero(row)[:20]] = False
    found = paired.seedwise_difference(one, other)
    assert found.value == pytest.approx(4.0)
    assert 2.5 < found.low < 4 < found.high < 5.5


def test_other_pairs_are_refused() -> None:
    right = np.ones((2, 30), bool)
    with pytest.raises(ValueError, match="30 and 31 pairs"):
        paired.accuracy_difference(right, np.ones((2, 31), bool))
    with pytest.raises(ValueError, match="same pairs"):
        paired.seedwise_difference(right, right[:1])
    with pytest.raises(ValueError, match="0 genuine and 30 impostor pairs"):
        paired.auc(np.zeros(30), np.zeros(30, bool))
