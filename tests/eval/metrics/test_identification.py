"""1:N figures against loops over sorted galleries, and the meaning of ties."""

import math

import numpy as np
import pytest

from eval.metrics import identification as module
from eval.metrics.identification import concatenated_tpir, rank_rate, search, tpir


def setting(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """60 probes of 30 people, 20 of whom stand in a gallery of 45 entries, some twice or more."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(30, 12))
    gallery_ids = np.append(np.arange(20), rng.integers(0, 20, 25))
    probe_ids = rng.integers(0, 30, 60)
    vectors = [
        centers[ids] + rng.normal(0, 1.2, (len(ids), 12)) for ids in (probe_ids, gallery_ids)
    ]
    probes, gallery = (
        (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in vectors
    )
    return probes, probe_ids, gallery, gallery_ids


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cells", [90, 10**6])
def test_figures_are_those_of_sorted_lists(
    seed: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELLS", cells)
    probes, probe_ids, gallery, gallery_ids = setting(seed)
    found = search(probes, probe_ids, gallery, gallery_ids, hardest=12)
    cosines = probes @ gallery.T
    mated, unmated = np.flatnonzero(probe_ids < 20), np.flatnonzero(probe_ids >= 20)
    assert np.flatnonzero(found.mated).tolist() == mated.tolist()
    lists = [gallery_ids[np.argsort(-row)] for row in cosines]
    for k in (1, 3, 5, 10):
        assert rank_rate(found, k) == np.mean([probe_ids[q] in lists[q][:k] for q in mated])
    for fpir in (0.0, 0.05, 0.1, 0.3):
        alarms = cosines[unmated].max(1)
        allowed = [t for t in [*cosines.ravel(), 2.0] if np.mean(alarms >= t) <= fpir]
        hits = [lists[q][0] == probe_ids[q] and cosines[q].max() >= min(allowed) for q in mated]
        assert tpir(found, fpir) == np.mean(hits)


def test_one_gallery_as_insightface_counts() -> None:
    probes, probe_ids, gallery, gallery_ids = setting(7)
    once = np.arange(20)
    probes, probe_ids = probes[probe_ids < 20], probe_ids[probe_ids < 20]
    cosines = probes @ gallery[once].T
    others = np.sort(cosines[probe_ids[:, None] != gallery_ids[once]])[::-1]
    mates = cosines[np.arange(len(probes)), probe_ids]
    found = search(probes, probe_ids, gallery[once], gallery_ids[once], hardest=10)
    for fpir in (0.01, 0.1):
        expected = np.mean(mates > others[math.ceil(len(probes) * fpir) - 1])
        assert concatenated_tpir(found, fpir) == pytest.approx(expected)
    with pytest.raises(ValueError, match="10 kept"):
        concatenated_tpir(found, 0.9)


def test_ties_are_not_hits_and_constant_embeddings_find_nobody() -> None:
    ones = np.ones((6, 4), np.float32) / 2
    found = search(ones, np.arange(6), ones, np.arange(6))
    assert found.rank.tolist() == [6] * 6
    assert rank_rate(found, 5) == 0
    assert math.isnan(tpir(found, 0.1))
    with pytest.raises(ValueError, match="gallery of 0"):
        search(ones, np.arange(6), ones[:0], np.arange(0))
