"""What a benchmark returns: figures, the curves they came from, and warnings to show with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from eval.metrics.verification import Roc


@dataclass(frozen=True, eq=False)
class Protocol:
    """How figures were made; results of one protocol share a table.

    name: its name in results.json.
    title: its name in words, as reports print it.
    columns: metric -> heading, in the order of the table. `METRIC_std` is shown behind `METRIC`. A
        metric that neither `columns` nor `unlisted` names gets a column headed by its own name.
    unlisted: metrics that only results.json holds.
    less_is_better: those of `columns` whose smallest value is the best.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    unlisted: tuple[str, ...] = ()
    less_is_better: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One ROC: far, tar float64 (K,) in [0, 1]."""

    far: np.ndarray
    tar: np.ndarray

    @classmethod
    def thinned(cls, curve: Roc, points: int = 2000) -> "Curve":
        """At most `points` points, spread evenly over the logarithm of the FAR, for plots."""
        rates = np.geomspace(1 / curve.impostors, 1, points - 1)
        counts = np.append(0, rates * curve.impostors + 0.5)
        at = np.unique(np.searchsorted(curve.false_accepts, counts, side="right") - 1)
        return cls(
            curve.false_accepts[at] / curve.impostors,
            curve.true_accepts[at] / curve.genuine,
        )


@dataclass(frozen=True)
class Histogram:
    """Cosine similarities: edges (K+1,), counts of genuine and impostor pairs (K,)."""

    edges: np.ndarray
    genuine: np.ndarray
    impostors: np.ndarray


@dataclass(frozen=True)
class Scores:
    """Every pair of a benchmark, to compare models with.

    distances: squared, of unit vectors, float32 (P,). same: bool (P,), whether both images show one
    person. digest: of the pairs.
    """

    distances: np.ndarray
    same: np.ndarray
    digest: str


@dataclass(frozen=True)
class WorstPair:
    """A wrong decision: both encoded images and their names.

    score: cosine similarity. same: whether the images show one person.
    """

    images: tuple[bytes, bytes]
    names: tuple[str, str]
    score: float
    same: bool


@dataclass(frozen=True)
class Identified:
    """A probe image of a search, and the gallery entries that are most like it.

    probe: its file. person: who it shows. found: person and cosine similarity, best first.
    """

    probe: str
    person: str
    found: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Result:
    """The outcome of one benchmark.

    metrics: rates in percent (accuracy, accuracy_std, tar@0.001, auc, eer, rank1, …) and other
        figures that the protocol defines.
    settings: what the figures depend on (mirror, pairs, …).
    scores: those of the pairs, by the name of their list.
    notes: warnings.
    skipped: why there are no figures; None if there are.
    """

    name: str
    protocol: Protocol
    metrics: dict[str, float]
    settings: dict[str, object] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    histogram: Histogram | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    worst: tuple[WorstPair, ...] = ()
    identified: tuple[Identified, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str | None = None


def histogram(scores: np.ndarray, same: np.ndarray, *, bins: int = 80) -> Histogram:
    """Counts of the cosine similarities (P,) of genuine and impostor pairs, in equal bins."""
    edges = np.linspace(-1, 1, bins + 1)
    # Rounding may leave a cosine just outside of [-1, 1].
    genuine, impostors = (
        np.histogram(np.clip(kind, -1, 1), bins, (-1, 1))[0]
        for kind in (scores[same], scores[~same])
    )
    return Histogram(edges, genuine, impostors)
