"""Every figure against a slow, literal form of its protocol, exactly."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from eval.metrics import verification as metrics


def literal_folds(
    distances: np.ndarray, same: np.ndarray, thresholds: np.ndarray
) -> tuple[list[float], list[float]]:
    """The published double loop: 400 thresholds by ten folds, counting with < each time."""
    accuracy, chosen = [], []
    for train, test in KFold(10, shuffle=False).split(np.arange(len(same))):
        right = [np.sum((distances[train] < t) == same[train]) / len(train) for t in thresholds]
        best = thresholds[int(np.argmax(right))]
        accuracy.append(float(np.sum((distances[test] < best) == same[test]) / len(test)))
        chosen.append(float(best))
    return accuracy, chosen


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    same = rng.random(1013) < 0.5
    normal = np.clip(rng.normal(1.5 - 0.6 * same, 0.4), 0, 4)
    return {
        "random": (normal, same),
        "on the grid": (np.round(normal, 2), same),
        "tied": (np.round(normal, 1), same),
        "constant": (np.full(1013, 1.25), same),
        "zero": (np.zeros(1013), same),
        "beyond the grid": (normal + 4, same),
        "wrong way round": (normal, ~same),
        "perfect": (np.where(same, 0.5, 3.0), same),
        "blocks of one kind": (np.sort(normal), np.arange(1013) < 500),
        "few": (normal[:23], same[:23]),
    }


@pytest.mark.parametrize("case", cases())
def test_grid_accuracy_is_the_published_loop(case: str) -> None:
    distances, same = cases()[case]
    found = metrics.grid_accuracy(distances, same)
    accuracy, thresholds = literal_folds(distances, same, np.arange(0, 4, 0.01))
    assert found.accuracy.tolist() == accuracy
    assert found.thresholds.tolist() == thresholds


@pytest.mark.parametrize("case", cases())
def test_exact_accuracy_tries_every_distance(case: str) -> None:
    distances, same = cases()[case]
    found = metrics.exact_accuracy(distances, same)
    for k, (train, test) in enumerate(KFold(10, shuffle=False).split(np.arange(len(same)))):
        candidates = [-np.inf, *np.unique(distances[train])]
        right = [int(np.sum((distances[train] <= t) == same[train])) for t in candidates]
        best = max(t for t, r in zip(candidates, right, strict=True) if r == max(right))
        assert found.thresholds[k] == best
        assert found.accuracy[k] == np.mean((distances[test] <= best) == same[test])


@pytest.mark.parametrize("case", cases())
def test_roc_is_scikit_learns(case: str) -> None:
    distances, same = cases()[case]
    curve = metrics.roc(-distances, same)
    far, tar, thresholds = roc_curve(same, -distances, drop_intermediate=False)
    np.testing.assert_array_equal(curve.far, far)
    np.testing.assert_array_equal(curve.tar, tar)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert metrics.auc(curve) == pytest.approx(roc_auc_score(same, -distances), abs=1e-12)
    np.testing.assert_array_equal(
        metrics.corners(curve), roc_curve(same, -distances, drop_intermediate=True)[:2]
    )


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("far", [0.0, 1e-6, 1e-3, 1e-2, 1 / 3, 0.5, 1.0])
def test_tar_at_far_strict_and_nearest(case: str, far: float) -> None:
    distances, same = cases()[case]
    curve = metrics.roc(-distances, same)
    genuine, impostors = distances[same], distances[~same]
    allowed = [np.mean(genuine <= t) for t in distances if np.mean(impostors <= t) <= far]
    assert metrics.tar_at_far(curve, far) == max(allowed, default=0)

    fars, tars, _ = roc_curve(same, -distances)
    # As published, the largest TAR at each FAR comes first.
    fars, tars = (
        np.flipud(fars),
        np.flipud(tars),
    )
    nearest = min(zip(abs(fars - far), range(len(fars)), strict=True))[1]
    assert metrics.nearest_tar(curve, [far]) == [tars[nearest]]


@pytest.mark.parametrize("case", cases())
def test_fold_tar_counts(case: str) -> None:
    distances, same = cases()[case]
    tar, got = metrics.fold_tar(distances, same, 0.01)
    for k, (train, test) in enumerate(KFold(10, shuffle=False).split(np.arange(len(same)))):
        others = np.sort(distances[train][~same[train]])
        allowed = (
            [t for t in [0.0, *others, np.inf] if np.mean(others < t) <= 0.01]
            if len(others)
            else [np.inf]
        )
        for rates, kind in ((tar, same), (got, ~same)):
            mine = distances[test][kind[test]]
            if len(mine) == 0:
                assert np.isnan(rates[k])
            else:
                assert rates[k] == np.mean(mine < max(allowed))


def test_eer_where_the_curve_crosses() -> None:
    rng = np.random.default_rng(0)
    same = rng.random(5000) < 0.4
    scores = rng.normal(same, 1)
    far, tar, _ = roc_curve(same, scores)
    grid = np.linspace(0, 1, 2_000_001)
    miss = 1 - np.interp(grid, far, tar)
    assert metrics.eer(metrics.roc(scores, same)) == pytest.approx(
        grid[np.argmin(abs(miss - grid))], abs=1e-6
    )
    assert metrics.eer(metrics.roc(np.zeros(5000), same)) == pytest.approx(0.5)
    assert metrics.eer(metrics.roc(same.astype(float), same)) == 0


def literal_distances(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    unit = embeddings.astype(np.float64)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(norms == 0, 1, norms)
    distances: np.ndarray = np.sum(np.square(unit[first] - unit[second]), 1)
    return distances


@pytest.mark.parametrize(
    "pairs", ["drawn", "neighbors", "neighbors, the others unused", "neighbors, turned"]
)
@pytest.mark.parametrize("layout", ["float32", "float16", "columns first", "every other row"])
def test_distances_of_normalized_embeddings(pairs: str, layout: str) -> None:
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(2000, 40)).astype(
        np.float16 if layout == "float16" else np.float32
    )
    embeddings[7] = 0
    if layout == "columns first":
        embeddings = np.asfortranarray(embeddings)
    if layout == "every other row":
        embeddings = np.repeat(embeddings, 2, 0)[::2]
    first, second = {
        "drawn": rng.integers(0, 2000, (2, 999)),
        "neighbors": np.arange(2000).reshape(1000, 2).T,
        "neighbors, the others unused": np.arange(1870).reshape(935, 2).T,
        "neighbors, turned": np.arange(2000).reshape(1000, 2).T[::-1],
    }[pairs]
    expected = literal_distances(embeddings, first, second)
    np.testing.assert_allclose(
        metrics.pair_distances(embeddings, first, second), expected, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("row", [-1, 4])
def test_a_pair_of_a_row_that_does_not_exist_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match=f"{row}.* 4 embeddings"):
        metrics.pair_distances(np.ones((4, 2)), np.array([0, 1]), np.array([1, row]))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="9 pairs"):
        metrics.fold_of(9)
    with pytest.raises(ValueError, match="no genuine pair among 20"):
        metrics.roc(np.zeros(20), np.zeros(20, bool))
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.roc(np.array([0.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="not finite"):
        metrics.pair_distances(np.full((2, 4), np.nan), np.array([0]), np.array([1]))
