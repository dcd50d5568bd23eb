"""Pooling and template scores against loops that follow the published text."""

import numpy as np
import pytest

from eval.metrics import templates as pooling


def literal_pool(
    embeddings: np.ndarray,
    templates: np.ndarray,
    media: np.ndarray,
    detector: np.ndarray | None,
    keep_norm: bool,
) -> np.ndarray:
    vectors = embeddings.astype(np.float64)
    if not keep_norm:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if detector is not None:
        vectors = vectors * detector[:, None]
    pooled = []
    for template in np.unique(templates):
        inside = templates == template
        parts = [vectors[inside & (media == m)].mean(0) for m in np.unique(media[inside])]
        pooled.append(np.sum(parts, 0) / np.linalg.norm(np.sum(parts, 0)))
    return np.array(pooled)


@pytest.mark.parametrize("keep_norm", [True, False])
@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pooling_is_the_published_loop(
    keep_norm: bool, weighed: bool, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "IMAGES_AT_ONCE", 64)
    rng = np.random.default_rng(0)
    templates = rng.choice([3, 70, 71, 900, 12], 500)
    media = rng.integers(-5, 20, 500)  # a media number may be in several templates
    embeddings: np.ndarray = (rng.normal(size=(500, 32)) * rng.uniform(0.1, 9, (500, 1))).astype(
        dtype
    )
    detector = rng.random(500) if weighed else None
    ids, vectors = pooling.pool_templates(
        embeddings, templates, media, detector=detector, keep_norm=keep_norm
    )
    assert ids.tolist() == [3, 12, 70, 71, 900]
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(
        vectors, literal_pool(embeddings, templates, media, detector, keep_norm), atol=2e-6
    )


@pytest.mark.parametrize("dense", [1, 40, 10**9])
def test_pair_scores_are_the_cosines_of_the_listed_pairs(
    dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "SIDE", 7)
    monkeypatch.setattr(pooling, "DENSE", dense)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(40, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = rng.integers(0, 40, (2, 3000))
    expected = np.sum(vectors[first].astype(np.float64) * vectors[second], 1)
    np.testing.assert_allclose(pooling.pair_scores(vectors, first, second), expected, atol=1e-6)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="template 8 is listed"):
        pooling.rows_of(np.array([1, 5, 9]), np.array([9, 8, 7]), "template")
    with pytest.raises(ValueError, match="2 media for 3"):
        pooling.pool_templates(np.ones((3, 2)), np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match="not finite"):
        pooling.pool_templates(np.full((3, 2), np.inf), np.zeros(3, int), np.zeros(3, int))
