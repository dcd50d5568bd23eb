"""The threshold at a false accept rate, against literal sums and against many drawn worlds."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from eval.metrics.threshold import rate_at_most, threshold_at_far


@pytest.mark.parametrize(("count", "far"), [(3000, 1e-3), (1000, 1e-3), (700, 0.01), (40, 0.05)])
def test_ranks_of_the_interval(count: int, far: float) -> None:
    """Against sums of binomial probabilities, written out."""
    scores = np.random.default_rng(count).permutation(count).astype(np.float64)
    below = [
        sum(comb(count, i) * far**i * (1 - far) ** (count - i) for i in range(k)) for k in range(30)
    ]  # below[k] = P(K < k)
    m = next(k for k in range(1, 30) if 1 - below[k] <= 0.05)
    j = max([k for k in range(1, 30) if below[k] <= 0.05], default=1)
    found = threshold_at_far(scores, far)
    assert found == (count - 1 - int(count * far), count - m, count - j)


def test_the_interval_holds_the_true_threshold() -> None:
    """The scores are uniform, so the true threshold is 1 - far."""
    rng = np.random.default_rng(0)
    found = [threshold_at_far(rng.random(1000), 0.01) for _ in range(1000)]
    low, high = (np.array([one[k] for one in found if one]) for k in (1, 2))
    assert 0.92 < np.mean(low < 0.99) <= 1
    assert 0.92 < np.mean(high > 0.99) <= 1
    assert np.mean(low < 0.99) < 0.995  # an interval that is too wide says nothing
    assert np.mean(high > 0.99) < 0.995


def test_too_few_pairs_have_no_threshold() -> None:
    assert threshold_at_far(np.zeros(999), 1e-3) is None
    assert threshold_at_far(np.zeros(1000), 1e-3) == (0, 0, 0)


@pytest.mark.parametrize(("events", "trials"), [(0, 3000), (1, 50), (7, 20), (20, 20)])
def test_rates_after_some_events(events: int, trials: int) -> None:
    """At the bound, so few events or fewer have a probability of 5 %."""
    p = rate_at_most(events, trials)
    few = sum(comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(events + 1))
    assert few == pytest.approx(0.05 if events < trials else 1)
