"""Schedules that depend on the step alone, against their formulas written out literally."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch

from data.parts import part_names
from recognition.config import Part
from recognition.parse import build_part
from recognition.schedulers import advance, schedule_log

PACKAGE = "recognition.schedulers"
TOTAL, PER_EPOCH, BASE = 60, 10, 0.4


def _rates(name: str, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = build_part(
        PACKAGE,
        Part(name, options),
        optimizer=optimizer,
        total_steps=TOTAL,
        steps_per_epoch=PER_EPOCH,
    )
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        advance(scheduler, torch.tensor(1.0))
    return rates


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("constant", {}, lambda t: 1.0),
        ("constant", {"warmup_steps": 5}, lambda t: min((t + 1) / 5, 1.0)),
        ("cosine", {}, lambda t: (1 + math.cos(math.pi * t / 60)) / 2),
        ("cosine", {"final": 0.1}, lambda t: 0.1 + 0.45 * (1 + math.cos(math.pi * t / 60))),
        ("polynomial", {}, lambda t: (1 - t / 60) ** 2),
        (
            "polynomial",
            {"warmup_steps": 20, "power": 1.0},
            lambda t: (t + 1) / 20 if t < 20 else 1 - (t - 20) / 40,
        ),
        (
            "multi_step",
            {"milestones": [1, 3.5]},
            lambda t: 1.0 if t < 10 else 0.1 if t < 35 else 0.01,
        ),
        (
            "multi_step",
            {"milestones": [1], "warmup_steps": 4},
            lambda t: min((t + 1) / 4, 1.0) if t < 10 else 0.1,
        ),
    ],
)
def test_learning_rates_follow_the_formula(
    name: str, options: dict[str, object], formula: Callable[[int], float]
) -> None:
    assert _rates(name, **options) == pytest.approx([BASE * formula(t) for t in range(TOTAL)])


@pytest.mark.parametrize("name", part_names("recognition.schedulers"))
def test_a_warm_up_longer_than_the_run_is_refused(name: str) -> None:
    """A warm-up as long as the run is allowed: its last step has the base learning rate."""
    assert _rates(name, warmup_steps=TOTAL)[-1] == pytest.approx(BASE)
    message = rf"^scheduler\.warmup_steps: found {TOTAL + 1}, expected at most {TOTAL}, "
    with pytest.raises(ValueError, match=message):
        _rates(name, warmup_steps=TOTAL + 1)


def test_torch_does_not_warn_of_a_skipped_first_step() -> None:
    """Torch warns if a schedule steps before the optimizer, which is no mistake after a skip."""
    for loss in (None, torch.tensor(1.0)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            advance(scheduler, loss)
        assert bool(caught) == (loss is not None)


def test_logs_show_what_a_schedule_has() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    given = {"optimizer": optimizer, "total_steps": TOTAL, "steps_per_epoch": PER_EPOCH}
    assert schedule_log(build_part(PACKAGE, Part("cosine"), **given)) == {}
    reader = build_part(PACKAGE, Part("fastface", {"threshold": 0.25}), **given)
    assert schedule_log(reader) == {"schedule/threshold": 0.25, "schedule/decays": 0}
    advance(reader, torch.tensor(3.0))
    advance(reader, torch.tensor(2.0))
    assert schedule_log(reader)["schedule/signal"] > 0


def test_every_schedule_is_known_by_its_file() -> None:
    expected = {"constant", "cosine", "fastface", "moving_haar", "multi_step", "polynomial"}
    assert expected <= set(part_names("recognition.schedulers"))


def test_loss_readers_are_given_the_loss() -> None:
    """A loss that never falls makes FastFace halve the learning rate; one that falls does not."""
    for slope, decays in ((0.0, True), (-1.0, False)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
        part = Part(
            "fastface", {"alpha": 0.2, "beta": 0.2, "threshold": 1e-3, "patience_fraction": 0.1}
        )
        scheduler = build_part(
            "recognition.schedulers",
            part,
            optimizer=optimizer,
            total_steps=TOTAL,
            steps_per_epoch=1,
        )
        for step in range(TOTAL):
            optimizer.step()
            advance(scheduler, torch.tensor(100.0 + slope * step))
        assert (optimizer.param_groups[0]["lr"] < BASE) == decays
