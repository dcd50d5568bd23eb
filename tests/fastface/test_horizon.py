"""for_horizon on the shortened curve of the real run; scripts/soak/horizon.py uses 20 seeds."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from fastface.schedulers import FastFaceLR
from scripts.soak.horizon import (
    FIXTURE,
    PUBLISHED_DECAYS,
    Noise,
    compress,
    decays,
    found,
    judge,
    plain_scaling,
)


@pytest.mark.parametrize(("horizon", "noise"), [(20_232, 0.8), (5_000, 0.8), (1_000, 0.8)])
def test_short_noisy_runs_decay_where_the_long_run_does(horizon: int, noise: float) -> None:
    verdict = judge(compress(FIXTURE, horizon), Noise(noise), seeds=2)
    assert verdict.passed, verdict


def test_plain_scaling_misses_the_decays() -> None:
    assert found(decays(compress(FIXTURE, 20_232), Noise(0.8), 0, plain_scaling)) < 4


def test_found_pairs_each_decay_once() -> None:
    assert found(list(PUBLISHED_DECAYS)) == 6
    assert found([PUBLISHED_DECAYS[0] + 0.079]) == 1
    assert found([PUBLISHED_DECAYS[0] + 0.081]) == 0
    assert found([0.9]) == 1  # near three of them, but it is one decay


def test_a_horizon_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="total_steps is 500: expected at least 1000"):
        FastFaceLR.for_horizon(SGD([nn.Parameter(torch.zeros(1))], lr=0.1), 500)


def test_a_given_threshold_replaces_the_scaled_one() -> None:
    # This curve falls by 2 in the run, which is little beside the 10.1 of the default threshold.
    curve = [2.0 - 2.0 * step / 2000 for step in range(2000)]
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scaled = FastFaceLR.for_horizon(optimizer, 2000)
    own = FastFaceLR.for_horizon(optimizer, 2000, threshold=2e-4)
    for loss in curve:
        scaled.step(loss)
        own.step(loss)
    assert scaled.threshold == pytest.approx(10.11625 / 2000)
    assert own.threshold == 2e-4
    assert scaled.decays == 8
    assert own.decays == 0
