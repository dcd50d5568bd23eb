"""Pruning against DiffProb's rule, written out image by image."""

import numpy as np
import pytest

from eval.cleaning import prune
from eval.cleaning.centers import robust_centers
from eval.cleaning.prune import prune_at_random, prune_by_difference, true_probabilities


def literal_rule(probabilities: np.ndarray, t: float, at_least: int) -> list[int]:
    """One identity: keep the most probable image, then each that is lower by more than t."""
    order = np.argsort(-probabilities, kind="stable").tolist()
    if len(order) <= at_least:
        return sorted(order)
    for step in range(101):
        kept = [order[0]]
        for image in order[1:]:
            if probabilities[kept[-1]] - probabilities[image] > t * (1 - step / 100):
                kept.append(image)
        if len(kept) >= at_least:
            return sorted(kept)
    return sorted({*kept, *order[:at_least]})  # too many equal ones


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.75, 1.0])
def test_keeps_the_share_that_is_wanted(keep: float) -> None:
    rng = np.random.default_rng(3)
    labels, probabilities = rng.integers(0, 20, 800) * 3, rng.beta(5, 0.5, 800)
    rows = prune_by_difference(probabilities, labels, keep)
    assert (np.diff(rows) > 0).all()
    assert abs(len(rows) - keep * 800) <= 2


@pytest.mark.parametrize("t", [0.0, 0.003, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("decimals", [1, 12])
def test_one_threshold(t: float, decimals: int) -> None:
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat(np.arange(6), [1, 4, 5, 6, 30, 60]))
    probabilities = rng.beta(5, 0.5, len(labels)).round(decimals)
    ordered = prune._ordered(probabilities, labels)
    kept = set(ordered.rows[prune._kept(ordered, t, 5)].tolist())
    expected = set()
    for identity in range(6):
        own = np.flatnonzero(labels == identity)
        expected |= set(own[literal_rule(probabilities[own], t, 5)].tolist())
    # Equal probabilities may be kept in another order, so compare the values.
    assert len(kept) == len(expected)
    found, wanted = (
        [np.sort(probabilities[[i for i in rows if labels[i] == k]]).tolist() for k in range(6)]
        for rows in (kept, expected)
    )
    assert found == wanted


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.75, 1.0])
def test_random_keeps_a_share_of_each_identity(keep: float) -> None:
    counts = np.array([1, 3, 5, 8, 40, 143])
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(6) * 7, counts))
    rows = prune_at_random(labels, keep, seed=2)
    assert (np.diff(rows) > 0).all()
    kept = np.array([np.count_nonzero(labels[rows] == 7 * identity) for identity in range(6)])
    lowest = np.minimum(counts, 5)
    assert (kept >= lowest).all()
    assert (abs(kept - np.maximum(keep * counts, lowest)) <= 1).all()
    assert len(np.setdiff1d(rows, prune_at_random(labels, keep, seed=3))) or keep in (0.0, 1.0)


def test_probabilities_are_a_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64 loops, with blocks that are smaller than the set."""
    monkeypatch.setattr(prune, "ROWS", 7)
    monkeypatch.setattr(prune, "COLUMNS", 3)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.r_[np.arange(8), rng.integers(0, 8, 32)] * 2
    centers = robust_centers(vectors, labels // 2, 8)
    expected = []
    for i in range(40):
        cosines = centers.vectors.astype(np.float64) @ vectors[i].astype(np.float64)
        cosines[labels[i] // 2] = centers.own[i]
        powers = np.exp(10 * cosines)
        expected.append(powers[labels[i] // 2] / powers.sum())
    found = true_probabilities(vectors, labels, scale=10)
    assert np.allclose(found, expected, rtol=1e-4)
