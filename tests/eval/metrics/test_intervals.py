"""Wilson's interval against its definition and against scipy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from eval.metrics.intervals import Z95, wilson


@given(st.integers(1, 100_000), st.data())
def test_equals_scipys_interval(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    low, high = wilson(successes / trials, trials)
    assert low == pytest.approx(expected.low, abs=1e-6)
    assert high == pytest.approx(expected.high, abs=1e-6)


def test_its_ends_are_z_deviations_from_the_rate() -> None:
    """The definition: a true rate p at the end has |rate − p| = z sqrt(p (1 − p) / n)."""
    for end in wilson(0.9, 500):
        assert abs(0.9 - end) == pytest.approx(Z95 * (end * (1 - end) / 500) ** 0.5)


@pytest.mark.parametrize(("rate", "trials"), [(0.5, 0), (1.01, 10), (float("nan"), 10)])
def test_refuses_what_is_no_rate(rate: float, trials: int) -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson(rate, trials)
