"""for_horizon on the shortened curve of the real run; scripts/soak/horizon.py uses 20 seeds."""

import random
from itertools import pairwise

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


def _staircase(falls: int) -> list[float]:
    """Twelve epochs of 400 steps. At the end of the first ones the loss falls by 1, with noise.

    Within each of them it rises by 0.7.
    """
    generator = random.Random(1)
    losses = []
    for step in range(12 * 400):
        epoch, place = divmod(step, 400)
        level = 20.0 - min(epoch, falls) + (0.7 * place / 400 if epoch < falls else 0.0)
        losses.append(level + generator.gauss(0.0, 0.5))
    return losses


def _decays(losses: list[float], **settings: int) -> list[int]:
    """The steps of the decays."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    threshold = 2.5 / len(losses)
    scheduler = FastFaceLR.for_horizon(optimizer, len(losses), threshold=threshold, **settings)
    found = [0]
    for loss in losses:
        scheduler.step(loss)
        found.append(scheduler.decays)
    return [step for step, (before, after) in enumerate(pairwise(found)) if after > before]


def test_the_rest_between_two_borders_of_epochs_is_not_stationary() -> None:
    assert len(_decays(_staircase(12))) > 2
    assert not _decays(_staircase(12), steps_per_epoch=400)


def test_a_loss_at_rest_for_epochs_is_stationary() -> None:
    first, *others = _decays(_staircase(4), steps_per_epoch=400)
    assert 4 * 400 < first < 9 * 400
    # The averages, of an epoch each, respond 2 epochs later than the falls.
    assert all(after - before > 2 * 400 for before, after in pairwise([first, *others]))


def test_averages_are_as_long_as_an_epoch_in_runs_of_ten_and_more() -> None:
    def made(steps_per_epoch: int | None, fraction: float | None = None) -> FastFaceLR:
        return FastFaceLR.for_horizon(
            SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
            10_000,
            steps_per_epoch=steps_per_epoch,
            patience_fraction=fraction,
        )

    for steps in (None, 1001, 20):  # no epochs, too few of them, and short ones
        assert made(steps).patience_steps == pytest.approx(500)
    late = 2 * 1000 - 2 * 10_000 / 202.325
    assert made(1000).patience_steps == pytest.approx(500 + late, abs=1)
    assert made(1000, 0.07).patience_steps == pytest.approx(700)


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
