"""Templates: several images of one person as one vector, and scores of pairs of templates."""

import numpy as np
from scipy.sparse import csr_matrix

IMAGES_AT_ONCE = 65_536  # 134 MB of float32 at 512 dimensions
SIDE = 2048  # templates on each side of a block of cosines: 16 MB
# From so many listed pairs in a block on, computing all its cosines costs less than gathering rows.
DENSE = 2000


def pool_templates(
    embeddings: np.ndarray,
    templates: np.ndarray,
    media: np.ndarray,
    *,
    detector: np.ndarray | None = None,
    keep_norm: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """(template ids (T,) ascending, unit vectors float32 (T,D)), pooled as published for IJB.

        vector of template t = normalized( Σ_media mean_{images of t in media} weight · embedding )

    embeddings (N,D). templates, media: ids int64 (N,). detector: weights (N,); None for 1.
    keep_norm: False normalizes the embeddings first. Sum and mean together are one weighted sum, so
    a sparse matrix of weights (T,N) times the embeddings computes all templates.
    """
    count = len(embeddings)
    for name, array in (("templates", templates), ("media", media), ("detector scores", detector)):
        if array is not None and len(array) != count:
            raise ValueError(f"{len(array)} {name} for {count} embeddings; expected one each")

    # The mean weighs an image by 1 / (images of its template with its media id).
    ids, rows = np.unique(templates, return_inverse=True)
    media_rows = np.unique(media, return_inverse=True)[1]
    _, group, size = np.unique(
        rows * (media_rows.max() + 1) + media_rows, return_inverse=True, return_counts=True
    )
    weights = 1 / size[group]
    if detector is not None:
        weights *= detector

    # Block by block, because `embeddings` may be a file of several GB.
    pooled = np.zeros((len(ids), embeddings.shape[1]), np.float32)
    for start in range(0, count, IMAGES_AT_ONCE):
        block = np.asarray(embeddings[start : start + IMAGES_AT_ONCE], np.float32)
        here = slice(start, start + len(block))
        share = weights[here]
        if not keep_norm:
            share = share / np.maximum(np.sqrt(np.einsum("nd,nd->n", block, block)), 1e-12)

        # The matrix has rows only for the templates of this block.
        present, local = np.unique(rows[here], return_inverse=True)
        matrix = csr_matrix(
            (share.astype(np.float32), (local, np.arange(len(block)))), (len(present), len(block))
        )
        pooled[present] += matrix @ block

    norms = np.linalg.norm(pooled, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise ValueError("an embedding is not finite")
    return ids, pooled / np.where(norms == 0, 1, norms)


def rows_of(ids: np.ndarray, wanted: np.ndarray, what: str) -> np.ndarray:
    """Positions of `wanted` ids in the ascending `ids`; ValueError for a missing one."""
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    absent = np.flatnonzero(ids[at] != wanted)
    if len(absent):
        raise ValueError(
            f"{what} {wanted[absent[0]]} is listed but has no image ({len(absent)} such entries)"
        )
    return at


def pair_scores(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines float32 (P,) of the listed pairs of rows of unit vectors float32 (T,D).

    Gathering both sides of the 15.7 M pairs of IJB-C moves 64 GB. All 535 M cosines by matrix
    products are 0.55 TFLOP, or half of that by symmetry. Therefore pairs are ordered by block of
    SIDE×SIDE cosines. Each block is computed once, and the listed cosines are picked from it.
    """
    # A cosine is symmetric, so only blocks on and above the diagonal are computed.
    low = np.minimum(first, second).astype(np.int32)
    high = np.maximum(first, second).astype(np.int32)
    blocks = -(-len(vectors) // SIDE)
    key = low // SIDE * blocks + high // SIDE

    # A stable sort of 16-bit keys is a radix sort, which is faster.
    key = key.astype(np.uint16) if blocks <= 256 else key
    order = np.argsort(key, kind="stable")
    edges = np.searchsorted(key[order], np.arange(blocks * blocks + 1))

    # A block with few listed pairs is not computed: their rows are gathered.
    scores = np.empty(len(first), np.float32)
    for block in np.flatnonzero(np.diff(edges)):
        listed = order[edges[block] : edges[block + 1]]
        a, b = low[listed], high[listed]
        if len(listed) < DENSE:
            scores[listed] = np.einsum("pd,pd->p", vectors[a], vectors[b])
            continue
        i, j = block // blocks * SIDE, block % blocks * SIDE
        cosines = vectors[i : i + SIDE] @ vectors[j : j + SIDE].T
        scores[listed] = cosines[a - i, b - j]
    return scores
