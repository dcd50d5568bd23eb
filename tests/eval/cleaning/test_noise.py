"""Wrong labels planted among synthetic people, and the scores against float64 loops."""

from pathlib import Path

import numpy as np
import pytest

from eval.cleaning import centers as centers_file
from eval.cleaning.centers import robust_centers
from eval.cleaning.noise import find_noise


def people(
    seed: int, count: int, images: int, spread: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (count·images, 32) around one direction per person, and their labels."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((count, 32))
    labels = np.repeat(np.arange(count), images)
    vectors = directions[labels] + spread * rng.standard_normal((len(labels), 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


def flip(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is another person's, and which those are, bool (N,)."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[rng.choice(len(labels), round(share * len(labels)), replace=False)] = True
    other = (labels + rng.integers(1, labels.max() + 1, len(labels))) % (labels.max() + 1)
    return np.where(wrong, other, labels), wrong


@pytest.mark.parametrize(("share", "recall"), [(0.02, 0.6), (0.2, 0.9), (0.4, 0.9)])
def test_planted_labels_are_found(share: float, recall: float) -> None:
    vectors, labels = people(0, 60, 20)
    noisy, wrong = flip(labels, share, 1)
    found = find_noise(vectors, 3 * noisy)  # the labels may have gaps
    assert wrong[found.rows].mean() >= 0.9
    assert np.count_nonzero(wrong[found.rows]) >= recall * np.count_nonzero(wrong)
    assert (found.other_identity[found.rows] == 3 * labels[found.rows]).mean() >= 0.95
    assert found.margin_cut.share == pytest.approx(share, abs=0.03)
    assert (np.diff(found.margin[found.rows]) >= 0).all()


def test_strangers_are_found() -> None:
    """Images of people who have no label: they are near to no center."""
    vectors, labels = people(0, 60, 20, spread=0.5)
    strangers = people(1, 100, 1)[0]
    both = np.concatenate([vectors, strangers])
    rng = np.random.default_rng(2)
    found = find_noise(both, np.concatenate([labels, rng.integers(0, 60, 100)]))
    assert np.count_nonzero(found.rows >= len(labels)) >= 75
    assert np.count_nonzero(found.rows < len(labels)) <= 10


def test_a_clean_set_loses_next_to_nothing() -> None:
    vectors, labels = people(3, 60, 20)
    assert len(find_noise(vectors, labels).rows) <= 3


def test_scores_equal_slow_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a memory map, in blocks that are smaller than the set, with images in mixed order."""
    monkeypatch.setattr(centers_file, "BLOCK", 7)
    vectors, labels = people(4, 6, 8, spread=1.5)
    rng = np.random.default_rng(5)
    order = rng.permutation(len(labels))
    vectors, labels = vectors[order], flip(labels[order], 0.2, 6)[0]
    vectors = np.concatenate([vectors, people(7, 1, 1)[0]])
    labels = np.r_[labels, 6]  # an identity of one image
    np.save(tmp_path / "vectors.npy", vectors)
    found = find_noise(np.load(tmp_path / "vectors.npy", mmap_mode="r"), labels)

    exact = vectors.astype(np.float64)
    weights = np.ones(len(labels))

    def own(i: int) -> float:
        others = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i]
        center = sum((weights[j] * exact[j] for j in others), np.zeros(32))
        return float(exact[i] @ center / np.linalg.norm(center)) if others else 0.0

    for _ in range(2):
        cosines = [own(i) for i in range(len(labels))]
        weights = np.maximum(cosines, 0) ** 2
        weights[-1] = 1
    for i in range(len(labels)):
        assert found.own[i] == pytest.approx(own(i), abs=1e-5)
        scores = {}
        for identity in range(7):
            center = sum(weights[j] * exact[j] for j in np.flatnonzero(labels == identity))
            scores[identity] = exact[i] @ center / np.linalg.norm(center)
        del scores[labels[i]]
        best = max(scores, key=lambda identity: scores[identity])
        assert found.other_identity[i] == best
        assert found.other[i] == pytest.approx(scores[best], abs=1e-5)
    assert len(labels) - 1 not in found.rows


def test_wrong_images_hardly_move_a_center() -> None:
    vectors, labels = people(8, 40, 20, spread=0.4)
    noisy, _ = flip(labels, 0.3, 9)
    true = robust_centers(vectors, labels, 40, rounds=1).vectors
    plain, robust = (robust_centers(vectors, noisy, 40, rounds=rounds).vectors for rounds in (1, 3))
    assert np.vecdot(true, robust).min() > 0.97 > np.vecdot(true, plain).min()


def test_one_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="found 1 identities, expected at least 2"):
        find_noise(np.eye(4, dtype=np.float32), np.zeros(4, int))
