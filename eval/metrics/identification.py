"""1:N identification: rank of the mate, closed set and open set, by counting over blocks of
cosines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from eval.metrics.verification import strict_threshold

CELLS = 16_000_000  # cosines at once: 64 MB


@dataclass(frozen=True)
class Search:
    """Each of Q probes searched in one gallery.

    mate: best cosine with its own identity, -inf where the gallery does not hold it. rank: 1 +
    number of entries of others at or above that (a tie is not a hit); 0 without a mate. impostor:
    best cosine with another identity. hardest: the largest cosines of all probes with entries of
    others, descending, as many as were asked for.
    """

    mate: np.ndarray
    rank: np.ndarray
    impostor: np.ndarray
    hardest: np.ndarray

    @property
    def mated(self) -> np.ndarray:
        return self.rank > 0


def search(
    probes: np.ndarray,
    probe_ids: np.ndarray,
    gallery: np.ndarray,
    gallery_ids: np.ndarray,
    *,
    hardest: int = 0,
) -> Search:
    """Unit vectors float32 (Q,D), (G,D) and identities int64 (Q,), (G,) -> Search."""
    if len(gallery) == 0 or len(probes) == 0:
        raise ValueError(
            f"{len(probes)} probes against a gallery of {len(gallery)}: both must hold something"
        )
    count = len(probes)
    mate, impostor = np.full(count, -np.inf, np.float32), np.full(count, -np.inf, np.float32)
    rank, top = np.zeros(count, np.int64), np.empty(0, np.float32)
    step = max(1, CELLS // len(gallery))
    for start in range(0, count, step):
        here = slice(start, start + step)
        cosines = probes[here] @ gallery.T
        own = probe_ids[here, None] == gallery_ids
        mate[here] = np.where(own, cosines, -np.inf).max(1)
        cosines[own] = -np.inf
        impostor[here] = cosines.max(1)
        rank[here] = np.where(
            own.any(1), 1 + np.count_nonzero(cosines >= mate[here, None], axis=1), 0
        )
        if hardest:
            pool = np.concatenate([top, cosines[~own]])
            top = (
                np.partition(pool, len(pool) - hardest)[-hardest:] if len(pool) > hardest else pool
            )
    return Search(mate, rank, impostor, np.sort(top)[::-1])


def rank_rate(found: Search, rank: int) -> float:
    """Share of mated probes whose mate is among the first `rank` entries."""
    return float(np.mean(found.rank[found.mated] <= rank)) if found.mated.any() else math.nan


def tpir(found: Search, fpir: float) -> float:
    """Open set: share of mated probes whose mate comes first and scores above the threshold at
    which at most a share `fpir` of the unmated probes finds anybody. NaN without mated or unmated
    probes.
    """
    if found.mated.all() or not found.mated.any():
        return math.nan
    threshold = strict_threshold(found.impostor[~found.mated], fpir)
    return float(np.mean((found.rank[found.mated] == 1) & (found.mate[found.mated] > threshold)))


def concatenated_tpir(found: Search, fpir: float) -> float:
    """As insightface counts in one gallery that holds everybody: mates above the ceil(fpir·Q)-th
    largest cosine of any probe with any other identity. Needs search(hardest=...) of at least as
    many.
    """
    wanted = math.ceil(len(found.mate) * fpir)
    if wanted < 1 or wanted > len(found.hardest):
        raise ValueError(
            f"FPIR {fpir} of {len(found.mate)} probes needs the {wanted} hardest impostors, "
            f"{len(found.hardest)} kept; raise `hardest` of the search"
        )
    return float(np.mean(found.mate > found.hardest[wanted - 1]))
