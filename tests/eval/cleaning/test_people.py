"""People planted under two labels, and two people under one, among synthetic ones."""

from pathlib import Path

import numpy as np
import pytest

from eval.cleaning.centers import robust_centers
from eval.cleaning.merge import find_merges, lowest_labels
from eval.cleaning.split import find_splits, two_groups
from tests.eval.cleaning.test_noise import flip, people


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_people_under_two_labels_are_found(noise: float) -> None:
    vectors, labels = people(0, 100, 20)
    vectors = vectors + np.float32(0.1)  # what all faces have in common
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    given = labels.copy()
    halved = np.arange(0, 100, 10)
    for place, identity in enumerate(halved):
        given[np.flatnonzero(labels == identity)[::2]] = 100 + place
    given, _ = flip(given, noise, 1)
    found = find_merges(vectors, 2 * given)  # the labels may have gaps
    expected = {(2 * int(one), 2 * (100 + place)) for place, one in enumerate(halved)}
    pairs = set(map(tuple, found.pairs.tolist()))
    assert expected <= pairs
    assert len(pairs) <= len(expected) + 1
    assert all(found.target[2 * (100 + place)] == 2 * one for place, one in enumerate(halved))
    assert (np.diff(found.similarities) <= 0).all()
    assert found.cut.share == pytest.approx(20 / 110, abs=0.1)


def test_a_person_under_three_labels_is_one() -> None:
    vectors, labels = people(1, 80, 30)
    given = labels.copy()
    given[np.flatnonzero(labels == 7)[::3]] = 80
    given[np.flatnonzero(labels == 7)[1::3]] = 81
    given[np.flatnonzero(labels == 9)[::2]] = 82
    found = find_merges(vectors, given)
    assert found.target | {7: 7, 80: 7, 81: 7, 9: 9, 82: 9} == found.target
    assert len(found.target) <= 7


def test_similarities_equal_slow_ones() -> None:
    """With more neighbors than identities, and with fewer."""
    vectors, labels = people(2, 14, 9, spread=1.5)
    found = find_merges(vectors, labels)
    exact = robust_centers(vectors, labels, 14).vectors.astype(np.float64)
    exact -= exact.mean(0)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    cosines = exact @ exact.T
    near = [[j for j in np.argsort(-cosines[i]) if j != i][:10] for i in range(14)]
    crowd = [np.median(cosines[i, near[i][1:]]) for i in range(14)]
    expected = [max(cosines[i, j] - (crowd[i] + crowd[j]) / 2 for j in near[i]) for i in range(14)]
    assert np.allclose(found.nearest, expected, atol=1e-5)
    assert len(find_merges(*people(3, 3, 6)).nearest) == 3


def test_chains_of_pairs() -> None:
    pairs = np.array([[5, 9], [2, 7], [7, 9], [11, 12]])
    assert lowest_labels(pairs) == {5: 2, 9: 2, 2: 2, 7: 2, 11: 11, 12: 11}
    assert lowest_labels(np.empty((0, 2), np.int64)) == {}


def test_two_people_under_one_label_are_found(tmp_path: Path) -> None:
    vectors, labels = people(4, 120, 16)
    given = labels.copy()
    for identity in range(0, 20, 2):
        given[labels == identity + 1] = identity
    order = np.random.default_rng(5).permutation(len(labels))
    np.save(tmp_path / "vectors.npy", vectors[order])
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    found = find_splits(mapped, 3 * given[order])
    assert {3 * identity for identity in range(0, 20, 2)} <= set(found.identities.tolist())
    assert len(found.identities) <= 11
    for identity in range(0, 20, 2):
        sides = [found.second[labels[order] == identity + side] for side in (0, 1)]
        assert sorted(side.mean() for side in sides) == [0, 1]
    assert not found.second[~np.isin(3 * given[order], found.identities)].any()


def test_one_person_with_wrong_images_is_not_two() -> None:
    vectors, labels = people(6, 100, 20)
    noisy, _ = flip(labels, 0.15, 7)
    assert len(find_splits(vectors, noisy).identities) <= 2


@pytest.mark.parametrize("dimension", [8, 32])
def test_groups_equal_slow_ones(dimension: int) -> None:
    rng = np.random.default_rng(8)
    directions = rng.standard_normal((2, dimension))
    own = np.r_[np.zeros(9, int), np.ones(5, int)]
    vectors = directions[own] + 0.4 * rng.standard_normal((14, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    apart, second = two_groups(vectors.astype(np.float32))
    assert np.array_equal(second, own == 1)
    within = [
        np.mean([vectors[i] @ vectors[j] for i in group for j in group if i != j])
        for group in (range(9), range(9, 14))
    ]
    between = np.mean([vectors[i] @ vectors[j] for i in range(9) for j in range(9, 14)])
    assert apart == pytest.approx(min(within) - between, abs=1e-6)
    assert two_groups(vectors[:11].astype(np.float32))[0] == -np.inf  # two images are no person


def test_one_identity_has_nothing_to_merge_with() -> None:
    with pytest.raises(ValueError, match="found 1 identities, expected at least 2"):
        find_merges(np.eye(4, dtype=np.float32), np.zeros(4, int))
