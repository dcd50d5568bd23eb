"""How far two models differ on the same pairs, with bootstrap intervals over pairs and seeds.

A resample draws as many pairs as there are, with replacement, and all models are judged on the same
drawn pairs: what makes a pair hard for every model does not widen the interval of a difference. A
list fixes how many genuine and how many impostor pairs it has, so each kind is drawn separately,
and FAR counts as many impostors in every resample. Folds are not drawn: they choose the thresholds
of the accuracy, and these are kept as they were on all pairs.

A row is a model that was trained with one or more seeds. On each resample the row's figure is its
mean over the seeds, plus how far the mean of S drawn seeds lies from that of all seeds on all
pairs. The seeds of each row are drawn separately, because seed 1 of one model has nothing in common
with seed 1 of another, and their deviation is widened by √(S / (S - 1)), by which that of S draws
from S seeds is too small. Such an interval is rather too wide than too narrow: the noise of single
decisions counts as a difference of the pairs and of the seeds. A single seed cannot show how much
seeds differ: the interval is then that of this very model, and another seed may lie outside of it.
Pairs that share a person count as independent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from eval.metrics.verification import allowed

RESAMPLES = 2000
AT_ONCE = 2_000_000  # counts in memory at a time: 16 MB
INTERVAL = (2.5, 97.5)  # percentiles

Figure = Callable[[np.ndarray], np.ndarray]
"""A figure float64 (R,) of R resamples, from how often each has each pair: float64 (R,P)."""


@dataclass(frozen=True)
class Interval:
    """A difference in points, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def accuracy_difference(
    one: np.ndarray, other: np.ndarray, same: np.ndarray | None = None, *, seed: int = 0
) -> Interval:
    """Points of accuracy of `one` above `other`, from right decisions bool (S,P) and (T,P).

    Line s of a row is its seed s, and all seeds of both rows are judged on the same P pairs.
    same: bool (P,), which pairs are genuine; None draws both kinds together. seed: of the draws.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"{one.shape[1]} and {other.shape[1]} pairs: they must be the same pairs")
    strata = np.zeros(one.shape[1], bool) if same is None else same
    found = resample([accuracy(right) for right in (*one, *other)], strata, seed=seed)
    return difference(found[: len(one)], found[len(one) :], seed=seed)


def seedwise_difference(one: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Interval:
    """Points of accuracy of `one` above `other`, if each seed has pairs of its own.

    one, other: right decisions bool (S,P); line s of both is of the same P pairs. Seeds are drawn
    for both rows together, and pairs within each seed. seed: of the draws.
    """
    if one.shape != other.shape:
        raise ValueError(f"decisions {one.shape} and {other.shape}: they must be of the same pairs")
    gain = 100 * (one.astype(np.float64) - other)
    rng = np.random.default_rng(seed)
    seeds, pairs = gain.shape
    shares = rng.multinomial(pairs, np.full(pairs, 1 / pairs), (RESAMPLES, seeds)) / pairs
    means = (shares * gain).sum(2)
    drawn = np.take_along_axis(means, rng.integers(seeds, size=means.shape), 1).mean(1)
    low, high = np.percentile(drawn, INTERVAL)
    return Interval(float(gain.mean()), float(low), float(high))


def resample(
    figures: Sequence[Figure], same: np.ndarray, *, count: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Each figure on all pairs and on `count` resamples of them, float64 (figures, 1 + count).

    same: bool (P,), which pairs are genuine.
    """
    found = np.empty((len(figures), 1 + count))
    begin = 0
    for counts in _counts(same, count, np.random.default_rng(seed)):
        for row, figure in zip(found, figures, strict=True):
            row[begin : begin + len(counts)] = figure(counts)
        begin += len(counts)
    return found


def _counts(same: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each pair counts: once on all pairs, then in each resample. Float64 (R,P)."""
    yield np.ones((1, len(same)))
    kinds = [kind for kind in (np.flatnonzero(same), np.flatnonzero(~same)) if len(kind)]
    step = max(1, AT_ONCE // max(len(same), 1))
    for start in range(0, count, step):
        counts = np.empty((min(step, count - start), len(same)))
        for row in counts:
            for kind in kinds:
                row[kind] = np.bincount(rng.integers(len(kind), size=len(kind)), None, len(kind))
        yield counts


def difference(one: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean of `one` above that of `other`: what `resample` found for the seeds of two rows.

    one, other: float64 (S,R) and (T,R), whose first column is of all pairs. seed: of the draws.
    """
    rng = np.random.default_rng([seed, 1])
    apart = _drawn(one, rng) - _drawn(other, rng)
    low, high = np.percentile(apart, INTERVAL)
    return Interval(float(one[:, 0].mean() - other[:, 0].mean()), float(low), float(high))


def _drawn(row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean of drawn seeds on each resample of the pairs, as described above; float64 (R,)."""
    mean: np.ndarray = row[:, 1:].mean(0)
    seeds = len(row)
    if seeds == 1:
        return mean
    deviations = row[:, 0] - row[:, 0].mean()
    drawn = deviations[rng.integers(seeds, size=(len(mean), seeds))].mean(1)
    moved: np.ndarray = mean + drawn * sqrt(seeds / (seeds - 1))
    return moved


def accuracy(right: np.ndarray) -> Figure:
    """Percent of right decisions, from bool (P,)."""
    points = 100 * right.astype(np.float64)
    return lambda counts: counts @ points / counts.sum(1)


def tar_at_far(distances: np.ndarray, same: np.ndarray, far: float) -> Figure:
    """The highest TAR in percent whose FAR does not exceed `far`, with a threshold per resample.

    distances: (P,), lower is more alike. Equals `verification.tar_at_far` on all pairs.
    """
    genuine, impostors = _sorted(distances, same)
    # How many genuine pairs lie strictly below each impostor pair; last: all of them.
    below = np.searchsorted(distances[genuine], distances[impostors], side="left")
    below = np.append(below, len(genuine))

    def figure(counts: np.ndarray) -> np.ndarray:
        accepted = np.cumsum(counts[:, impostors], 1)
        refused = accepted > allowed(far, len(impostors))
        first = np.where(refused[:, -1], refused.argmax(1), len(impostors))
        genuine_counts = np.cumsum(np.pad(counts[:, genuine], ((0, 0), (1, 0))), 1)
        found = np.take_along_axis(genuine_counts, below[first][:, None], 1)[:, 0]
        share: np.ndarray = 100 * found / genuine_counts[:, -1]
        return share

    return figure


def auc(distances: np.ndarray, same: np.ndarray) -> Figure:
    """Percent of genuine pairs that are more alike than an impostor pair; equal ones count half.

    distances: (P,). Equals `verification.auc` on all pairs.
    """
    genuine, impostors = _sorted(distances, same)
    ends = [
        np.searchsorted(distances[impostors], distances[genuine], side=side)
        for side in ("left", "right")
    ]

    def figure(counts: np.ndarray) -> np.ndarray:
        closer = np.cumsum(np.pad(counts[:, impostors], ((0, 0), (1, 0))), 1)
        beaten = closer[:, -1:] - (closer[:, ends[0]] + closer[:, ends[1]]) / 2
        weights = counts[:, genuine]
        share: np.ndarray = (weights * beaten).sum(1) / weights.sum(1) / closer[:, -1]
        return 100 * share

    return figure


def _sorted(distances: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the genuine and of the impostor pairs, the most alike first."""
    order = np.argsort(distances, kind="stable")
    kinds = order[same[order]], order[~same[order]]
    if not all(map(len, kinds)):
        raise ValueError(f"{len(kinds[0])} genuine and {len(kinds[1])} impostor pairs: needs both")
    return kinds
