"""The exact search against brute force in float64, sorted as a whole."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import search
from eval.search import Matches, rounding_bound, top_matches


def unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def random_unit(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    return unit(rng.standard_normal((count, dimension), np.float32))


def brute(probes: np.ndarray, gallery: np.ndarray, k: int) -> Matches:
    """All float64 products, each row sorted; the sort keeps the order of equal ones."""
    products = probes.astype(np.float64) @ gallery.astype(np.float64).T
    rows = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return Matches(rows, np.take_along_axis(products, rows, 1))


def test_equals_brute_force_on_a_hundred_thousand() -> None:
    """Neighbors at distances of 1e-6 are in the gallery: float32 products alone confuse them."""
    rng = np.random.default_rng(0)
    probes, gallery = random_unit(rng, 20, 512), random_unit(rng, 100_000, 512)
    near = np.repeat(probes, 8, axis=0) + 1e-3 * random_unit(rng, 160, 512)
    gallery[rng.choice(100_000, 160, replace=False)] = unit(near)
    expected, found = brute(probes, gallery, 10), top_matches(probes, gallery, 10)
    assert np.array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-14)
    in_float32 = np.argsort(-(probes @ gallery.T), axis=1, kind="stable")[:, :10]
    assert not np.array_equal(in_float32, expected.rows)  # otherwise the test shows nothing


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 60), st.integers(1, 12), st.data()
)
@settings(max_examples=80, deadline=None)
def test_equal_and_excluded_entries(
    seed: int, probes: int, entries: int, k: int, data: st.DataObject
) -> None:
    """Few different vectors, so many ties; block sizes that do not divide the sets."""
    rng = np.random.default_rng(seed)
    few = random_unit(rng, 4, 8)
    one, other = few[rng.integers(0, 4, probes)], few[rng.integers(0, 4, entries)]
    ids = rng.integers(0, 3, probes), rng.integers(0, 3, entries)
    exclude = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "PROBES", data.draw(st.integers(1, 5)))
        patch.setattr(search, "ENTRIES", data.draw(st.integers(1, 70)))
        patch.setattr(search, "PAIRS", data.draw(st.integers(1, 5)))
        patch.setattr(search, "GROUPS", data.draw(st.sampled_from([1, 4, 8, 64])))
        few_are_a_crowd = data.draw(st.booleans())
        patch.setattr(search, "CROWDED", -3 * min(k, entries) if few_are_a_crowd else 2)
        found = top_matches(one, other, k, other_than=ids if exclude else None)
    assert found.rows.shape == found.scores.shape == (probes, min(k, entries))
    for p in range(probes):
        allowed = [g for g in range(entries) if not exclude or ids[0][p] != ids[1][g]]
        exact = {g: _exact(one[p], other[g]) for g in allowed}
        order = sorted(allowed, key=lambda g: (-exact[g], g))[: min(k, entries)]
        filled = [*order, *[-1] * (min(k, entries) - len(order))]
        assert found.rows[p].tolist() == filled
        assert [s == -np.inf for s in found.scores[p]] == [g == -1 for g in filled]


def _exact(one: np.ndarray, other: np.ndarray) -> Fraction:
    """The product of two rows in rational numbers; few[i] are far apart, so no rounding matters."""
    pairs = zip(one.tolist(), other.tolist(), strict=True)
    return sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))


def test_the_bound_holds_for_the_worst_rounding() -> None:
    """Sums in float32 that round in one direction stay within the bound, and come near enough."""
    rng = np.random.default_rng(1)
    largest = 0.0
    for _ in range(50):
        one, other = np.abs(random_unit(rng, 2, 512))
        total = np.float32(0)
        for a, b in zip(one, other, strict=True):
            total = np.nextafter(np.float32(total + np.float32(a * b)), np.float32(2))
        exact = float(np.dot(one.astype(np.float64), other.astype(np.float64)))
        largest = max(largest, abs(float(total) - exact))
    assert rounding_bound(512) / 100 < largest < 2 * rounding_bound(512)


def test_mapped_halves_are_searched(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    gallery = random_unit(rng, 5000, 32).astype(np.float16)
    np.save(tmp_path / "x.npy", gallery)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    probes = gallery[::1000].astype(np.float32)
    expected, found = brute(probes, gallery, 3), top_matches(mapped[::1000], mapped, 3)
    assert np.array_equal(found.rows, expected.rows)
    assert found.rows[:, 0].tolist() == [0, 1000, 2000, 3000, 4000]


def test_wrong_vectors_are_named() -> None:
    gallery = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="vector 2 has the squared length 4;"):
        top_matches(gallery, gallery * [[1], [1], [2], [1]], 1)
    gallery[1, 1] = np.nan
    with pytest.raises(ValueError, match="vector 1 has the squared length nan"):
        top_matches(gallery, gallery, 1)
    with pytest.raises(ValueError, match=r"probes \(4, 4\) in a gallery \(3, 3\)"):
        top_matches(gallery, gallery[:3, :3], 1)
    assert top_matches(np.eye(2, dtype=np.float32), np.zeros((0, 2)), 3).rows.shape == (2, 0)
