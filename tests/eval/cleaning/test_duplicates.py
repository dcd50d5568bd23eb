"""Repeated images: against all pairs, one by one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.cleaning.centers import robust_centers
from eval.cleaning.duplicates import Duplicates, find_duplicates
from eval.embed import normalized

NEAR = 0.95


def digests_of(numbers: np.ndarray) -> np.ndarray:
    """The digests of images, of which those with one number have equal bytes."""
    digests = [
        hashlib.blake2b(bytes([n % 256, n // 256]), digest_size=16).digest() for n in numbers
    ]
    return np.array([np.frombuffer(digest, np.uint8) for digest in digests])


def set_with_copies(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, labels and byte numbers: copies in and across identities, in any order of rows."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(9), rng.integers(0, 9, 60)])
    rng.shuffle(labels)
    centers = rng.standard_normal((9, 16))
    vectors = centers[labels] + 0.8 * rng.standard_normal((len(labels), 16))
    numbers = np.arange(len(labels))
    for _ in range(12):
        one, other = rng.choice(len(labels), 2, replace=False)
        vectors[one] = vectors[other]
        numbers[one] = numbers[other]
    for _ in range(12):
        one, other = rng.choice(len(labels), 2, replace=False)
        vectors[one] = vectors[other] + 0.15 * rng.standard_normal(16)
        numbers[one] = len(labels) + one
    return normalized(vectors).astype(np.float32), labels, numbers


def found_in(vectors: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> Duplicates:
    centers = robust_centers(vectors, labels, int(labels.max()) + 1)
    return find_duplicates(vectors, labels, digests_of(numbers), centers, NEAR, neighbors=8)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_what_stays_repeats_nothing_and_what_goes_repeats_what_stays(seed: int) -> None:
    """All identities are neighbors here, so the rule holds for all pairs of images."""
    vectors, labels, numbers = set_with_copies(seed)
    found = found_in(vectors, labels, numbers)
    stays = np.delete(np.arange(len(labels)), found.rows)
    exact = vectors.astype(np.float64)
    for at, one in enumerate(stays):
        for other in stays[at + 1 :]:
            assert exact[one] @ exact[other] < NEAR + 1e-6
            assert numbers[one] != numbers[other]
    assert len(set(found.rows.tolist())) == len(found.rows)
    assert set(found.kept.tolist()) <= set(stays.tolist())
    for row, kept, cosine, equal in zip(
        found.rows, found.kept, found.cosines, found.equal, strict=True
    ):
        assert cosine == pytest.approx(exact[row] @ exact[kept], abs=1e-12)
        assert equal == (numbers[row] == numbers[kept])
    assert (np.diff(found.equal.astype(int)) <= 0).all()


def test_the_better_one_of_two_identities_is_kept() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 8)
    vectors = normalized(rng.standard_normal((3, 32))[labels] + 0.7 * rng.standard_normal((24, 32)))
    vectors[3] = vectors[12]  # an image of identity 1 that lies among those of identity 0
    numbers = np.arange(24)
    numbers[3] = numbers[12]
    found = found_in(vectors.astype(np.float32), labels, numbers)
    assert found.rows.tolist() == [3]
    assert found.kept.tolist() == [12]
    assert found.equal.tolist() == [True]


def test_far_identities_are_not_compared() -> None:
    """Near-equal images of identities that are no neighbors stay; equal bytes do not."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(30), 10)
    vectors = normalized(
        rng.standard_normal((30, 32))[labels] + 0.5 * rng.standard_normal((300, 32))
    ).astype(np.float32)
    centers = robust_centers(vectors, labels, 30)
    far = int((centers.vectors @ centers.vectors[0]).argmin())
    vectors[10 * far] = vectors[0]
    centers = robust_centers(vectors, labels, 30)
    numbers = np.arange(300)
    found = find_duplicates(vectors, labels, digests_of(numbers), centers, 0.99, neighbors=1)
    assert len(found.rows) == 0
    numbers[10 * far] = 0
    found = find_duplicates(vectors, labels, digests_of(numbers), centers, 0.99, neighbors=1)
    assert found.rows.tolist() == [10 * far]


def test_one_identity_and_mapped_vectors(tmp_path: Path) -> None:
    vectors, labels, numbers = set_with_copies(3)
    np.save(tmp_path / "vectors.npy", vectors.astype(np.float16))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    one = found_in(mapped, labels, numbers)
    two = found_in(vectors.astype(np.float16).astype(np.float32), labels, numbers)
    assert one.rows.tolist() == two.rows.tolist()
    alone = found_in(vectors, np.zeros_like(labels), numbers)
    assert len(alone.rows) >= len(numbers) - len(np.unique(numbers))
    assert not set(alone.kept.tolist()) & set(alone.rows.tolist())
