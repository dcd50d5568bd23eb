"""1:N identification, closed set and open set, by counting over blocks of cosines.

The mate of a probe is an entry of the gallery with the probe's identity.
"""

import math
from dataclasses import dataclass

import numpy as np

from eval.metrics.verification import strict_threshold

CELLS = 16_000_000  # cosines in memory at a time: 64 MB


@dataclass(frozen=True)
class Search:
    """The result of searching one gallery for Q probes; float32 and int64 (Q,).

    mate: best cosine with a mate, -inf without a mate.
    rank: 1 + the number of other identities' entries whose cosine is at least `mate`, so that an
        equal cosine is not a hit; 0 without a mate.
    impostor: best cosine with another identity.
    hardest: the largest of all cosines between different identities, descending; empty unless
        `search` was asked for them.
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
    mate, impostor = np.empty((2, count), np.float32)
    rank = np.empty(count, np.int64)
    top = np.empty(0, np.float32)
    step = max(1, CELLS // len(gallery))
    for start in range(0, count, step):
        here = slice(start, start + step)
        cosines = probes[here] @ gallery.T
        own = probe_ids[here, None] == gallery_ids
        mate[here] = np.where(own, cosines, -np.inf).max(1)

        # Without the mates, the rest are impostors. A mate's rank counts those at or above it.
        cosines[own] = -np.inf
        impostor[here] = cosines.max(1)
        before = np.count_nonzero(cosines >= mate[here, None], axis=1)
        rank[here] = np.where(own.any(1), 1 + before, 0)

        # Keep the `hardest` largest impostors of all blocks so far.
        if hardest:
            top = np.concatenate([top, cosines[~own]])
            if len(top) > hardest:
                top = np.partition(top, len(top) - hardest)[-hardest:]
    return Search(mate, rank, impostor, np.sort(top)[::-1])


def rank_rate(found: Search, rank: int) -> float:
    """Share of mated probes whose mate is among the first `rank` entries."""
    return float(np.mean(found.rank[found.mated] <= rank)) if found.mated.any() else math.nan


def tpir(found: Search, fpir: float) -> float:
    """Open set: share of mated probes whose mate comes first and scores above the threshold.

    The threshold lets at most a share `fpir` of the unmated probes find anybody. The result is NaN
    if there are no mated or no unmated probes.
    """
    if found.mated.all() or not found.mated.any():
        return math.nan
    threshold = strict_threshold(found.impostor[~found.mated], fpir)
    return float(np.mean((found.rank[found.mated] == 1) & (found.mate[found.mated] > threshold)))


def concatenated_tpir(found: Search, fpir: float) -> float:
    """TPIR as insightface computes it, in one gallery that has a mate of every probe.

    It is the share of mates above the ceil(fpir·Q)-th largest cosine between different identities,
    so `search` must have kept at least that many of the hardest.
    """
    wanted = math.ceil(len(found.mate) * fpir)
    if wanted < 1 or wanted > len(found.hardest):
        raise ValueError(
            f"FPIR {fpir} of {len(found.mate)} probes needs the {wanted} hardest impostors, "
            f"{len(found.hardest)} kept; raise `hardest` of the search"
        )
    return float(np.mean(found.mate > found.hardest[wanted - 1]))
