"""Overlap: against all scores, computed literally, and with strangers alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.cleaning.overlap import _strangers, _strangers_above, find_overlap, mean_centers
from eval.embed import normalized


def centers(people: int, seed: int, dimension: int = 64) -> np.ndarray:
    """Random directions, which crowd around a common one."""
    rng = np.random.default_rng(seed)
    drawn = 0.5 + rng.standard_normal((people, dimension))
    return normalized(drawn).astype(np.float32)


def literal_scores(identities: np.ndarray, people: np.ndarray) -> np.ndarray:
    """z of all pairs (P,C), in float64."""
    middle = people.astype(np.float64).mean(0)
    left = normalized(people.astype(np.float64) - middle)
    right = normalized(identities.astype(np.float64) - middle)
    values = np.arctanh(np.clip(left @ right.T, -0.9999, 0.9999))
    by_person = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    by_identity = (values - values.mean(0)) / values.std(0)
    found: np.ndarray = (by_person + by_identity) / 2
    return found


def test_planted_people_are_found_and_no_stranger() -> None:
    identities, people = centers(300, 0), centers(400, 1)
    rng = np.random.default_rng(2)
    planted = rng.permutation(300)[:20]
    people[:20] = normalized(identities[planted] + 0.1 * rng.standard_normal((20, 64)))
    found = find_overlap(identities, people)
    assert dict(zip(found.people.tolist(), found.identities.tolist(), strict=True)) == dict(
        enumerate(planted.tolist())
    )
    scores = literal_scores(identities, people)
    assert found.scores == pytest.approx(scores[found.people, found.identities], abs=1e-4)
    assert (np.diff(found.scores) <= 0).all()
    ordered = np.sort(scores, axis=1)
    assert found.first == pytest.approx(ordered[:, -1], abs=1e-4)
    above = np.argwhere(scores > found.threshold)
    assert {tuple(pair) for pair in above.tolist()} == set(
        zip(found.people.tolist(), found.identities.tolist(), strict=True)
    )


def test_as_many_strangers_are_accused_as_are_expected() -> None:
    """Four times 360,000 pairs of strangers; their counts are Poisson's."""
    expected = {10.0: (24, 64), 0.1: (0, 3)}
    for each, (least, most) in expected.items():
        counts = [
            len(
                find_overlap(
                    centers(600, seed), centers(600, 50 + seed), expected_false=each
                ).scores
            )
            for seed in range(4)
        ]
        assert least <= sum(counts) <= most


def test_the_normal_distribution_of_strangers_comes_from_second_matches() -> None:
    rng = np.random.default_rng(0)
    scores = 0.3 + 1.2 * rng.standard_normal((4000, 500))
    mean, deviation = _strangers(np.sort(scores, axis=1)[:, -2], 500)
    assert mean == pytest.approx(0.3, abs=0.25)
    assert deviation == pytest.approx(1.2, abs=0.08)
    for share in (1e-6, 0.01, 0.5, 0.99):
        average = _strangers_above(share)
        assert 1 - math.exp(-average) * (1 + average) == pytest.approx(share, rel=1e-6)


def test_one_picture_alone_accuses_nobody() -> None:
    """An identity with one picture of a test person among twenty stays; with ten it goes."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(200), 20)
    means = rng.standard_normal((200, 64))
    vectors = normalized(means[labels] + 0.8 * rng.standard_normal((4000, 64)))
    stranger = rng.standard_normal(64)
    tested = np.repeat(np.arange(150), 2)
    test = normalized(
        np.concatenate([[stranger], rng.standard_normal((149, 64))])[tested]
        + 0.3 * rng.standard_normal((300, 64))
    )
    vectors[40] = test[0]
    people, _ = mean_centers(test.astype(np.float32), tested)
    alone, own = mean_centers(vectors.astype(np.float32), labels)
    assert len(find_overlap(alone, people).people) == 0
    assert own[40] == pytest.approx(
        vectors[40] @ normalized(vectors[41:60].sum(0)[None])[0], abs=1e-5
    )
    vectors[40:60] = normalized(stranger + 0.8 * rng.standard_normal((20, 64)))
    found = find_overlap(mean_centers(vectors.astype(np.float32), labels)[0], people)
    assert (found.people.tolist(), found.identities.tolist()) == ([0], [2])


@pytest.mark.parametrize(
    ("identities", "people", "message"),
    [
        (centers(19, 0), centers(30, 1), "expected 20 and 20 or more"),
        (centers(30, 0), centers(19, 1), "expected 20 and 20 or more"),
        (centers(30, 0), np.repeat(centers(1, 1), 30, axis=0), "has the model diverged"),
    ],
)
def test_too_few_or_equal_people(identities: np.ndarray, people: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_overlap(identities, people)
