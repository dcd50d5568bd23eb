"""What a benchmark hands back: figures, the curves they came from, and what a person should know
about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from eval.metrics.verification import Roc


@dataclass(frozen=True)
class Curve:
    """One ROC (or DET of an open-set search): far, tar float64 (K,) in [0, 1]."""

    far: np.ndarray
    tar: np.ndarray

    @classmethod
    def thinned(cls, curve: Roc, points: int = 2000) -> Curve:
        """At most that many points, evenly spread over the logarithm of the FAR: all that a plot
        shows."""
        fars = np.append(
            0, np.geomspace(1 / curve.impostors, 1, points - 1) * curve.impostors + 0.5
        )
        at = np.unique(np.searchsorted(curve.false_accepts, fars, side="right") - 1)
        return cls(
            curve.false_accepts[at] / curve.impostors, curve.true_accepts[at] / curve.genuine
        )


@dataclass(frozen=True)
class Histogram:
    """Cosine similarities: edges (K+1,), counts of genuine and impostor pairs (K,)."""

    edges: np.ndarray
    genuine: np.ndarray
    impostors: np.ndarray


@dataclass(frozen=True)
class WorstPair:
    """A wrong decision: encoded images and names of both sides, cosine similarity, and whether they
    are one person."""

    images: tuple[bytes, bytes]
    names: tuple[str, str]
    score: float
    same: bool


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome.

    metrics: rates in percent (accuracy, accuracy_std, tar@0.001, auc, eer, rank1, ...); threshold:
    squared distance. settings: what the figures depend on (mirror, pairs, folds, ...). notes:
    warnings to print beside the figures. skipped: why there are no figures, for a benchmark marked
    optional whose files are missing; None otherwise.
    """

    name: str
    metrics: dict[str, float]
    settings: dict[str, object] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    histogram: Histogram | None = None
    worst: tuple[WorstPair, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str | None = None


def histogram(scores: np.ndarray, same: np.ndarray, *, bins: int = 80) -> Histogram:
    """Counts of cosine scores (P,) in equal bins over [-1, 1] for genuine and impostor pairs."""
    edges = np.linspace(-1, 1, bins + 1)
    counts = [
        np.histogram(np.clip(part, -1, 1), bins, (-1, 1))[0]
        for part in (scores[same], scores[~same])
    ]
    return Histogram(edges, *counts)
