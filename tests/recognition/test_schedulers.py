"""Schedules that depend on the step alone, against their formulas written out literally."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from data.parts import find_part, part_names
from data.steps import Steps
from recognition.config import Part
from recognition.parse import build_part
from recognition.schedulers import Schedule, any_length, difference_of_neighbors

PACKAGE = "recognition.schedulers"
TOTAL, PER_EPOCH, BASE = 60, 10, 0.4


AS_PLANNED = Steps(images=6, planned=6, epoch=6 * PER_EPOCH)


def _built(
    name: str,
    options: dict[str, object],
    steps: Steps = AS_PLANNED,
    base: float = BASE,
    total: int = TOTAL,
) -> tuple[torch.optim.Optimizer, Schedule]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = build_part(
        PACKAGE,
        Part(name, options),
        optimizer=optimizer,
        total_steps=total,
        steps_per_epoch=PER_EPOCH,
    )
    return optimizer, Schedule(scheduler, steps)


def _rates(name: str, **options: object) -> list[float]:
    optimizer, schedule = _built(name, options)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.advance(torch.tensor(1.0))
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
        ("trapezoid", {}, lambda t: 1.0 if t <= 48 else (60 - t) / 12),
        ("trapezoid", {"decay": 1.0}, lambda t: 1 - t / 60),
        (
            "trapezoid",
            {"warmup_steps": 20, "decay": 0.25},
            lambda t: (t + 1) / 20 if t < 20 else 1.0 if t < 50 else (60 - t) / 10,
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


WITH_WARMUP = [
    name
    for name in part_names(PACKAGE)
    if "warmup_steps" in inspect.signature(find_part(PACKAGE, name).build).parameters
]


@pytest.mark.parametrize("name", WITH_WARMUP)
def test_a_warm_up_longer_than_the_run_is_refused(name: str) -> None:
    """A warm-up as long as the run is allowed: its last step has the base learning rate."""
    assert _rates(name, warmup_steps=TOTAL)[-1] == pytest.approx(BASE)
    message = rf"^scheduler\.warmup_steps: found {TOTAL + 1}, but the run has {TOTAL} steps, "
    with pytest.raises(ValueError, match=message):
        _rates(name, warmup_steps=TOTAL + 1)


@pytest.mark.parametrize("name", part_names(PACKAGE))
def test_every_schedule_continues_from_what_was_saved(name: str) -> None:
    """The state is numbers and lists, as a checkpoint's JSON can hold them."""
    losses = [torch.tensor(5.0 - step / 20) for step in range(TOTAL)]
    optimizer, schedule = _built(name, {})
    resumed: tuple[torch.optim.Optimizer, Schedule] | None = None
    for step, loss in enumerate(losses):
        if step == TOTAL // 2:
            resumed = _built(name, {})
            resumed[0].load_state_dict(optimizer.state_dict())
            resumed[1].load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        for optimizer_, schedule_ in [(optimizer, schedule), *([resumed] if resumed else [])]:
            optimizer_.step()
            schedule_.advance(loss)
    assert resumed is not None
    rates = [one.param_groups[0]["lr"] for one in (optimizer, resumed[0])]
    assert rates[0] == rates[1]
    assert 0 <= rates[0] <= BASE


def test_torch_does_not_warn_of_a_skipped_first_step() -> None:
    """Torch warns if a schedule steps before the optimizer, which is no mistake after a skip."""
    for loss in (None, torch.tensor(1.0)):
        _, schedule = _built("constant", {})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            schedule.advance(loss)
        assert bool(caught) == (loss is not None)


def test_logs_show_what_a_schedule_has() -> None:
    assert _built("cosine", {})[1].log() == {}
    _, reader = _built("fastface", {"threshold": 0.25})
    assert reader.log() == {"schedule/threshold": 0.25, "schedule/decays": 0}
    reader.advance(torch.tensor(3.0))
    reader.advance(torch.tensor(2.0))
    assert reader.log()["schedule/signal"] > 0


# Each number is a size of the optimizer steps, and a resume with the next size follows 23 steps.
SIZES = [(12,), (3,), (2, 18), (4,), (6, 4, 15, 6), (60, 1)]
BY_STEP: dict[str, dict[str, object]] = {
    "constant": {"warmup_steps": 7},
    "cosine": {"warmup_steps": 7, "final": 0.1},
    "polynomial": {"warmup_steps": 7},
    "trapezoid": {"warmup_steps": 7, "decay": 0.3},
    "multi_step": {"milestones": [1, 3.5], "warmup_steps": 4},
}


def _steps_of(
    sizes: tuple[int, ...], name: str, options: dict[str, object], per_size: int = 23
) -> Iterator[tuple[range, torch.optim.Optimizer, Schedule]]:
    """(images, optimizer, schedule) before each step of a run that resumes with other sizes."""
    place, state = 0, None
    for turn, size in enumerate(sizes):
        steps = Steps(images=size, planned=6, epoch=6 * PER_EPOCH)
        optimizer, schedule = _built(name, options, steps)
        if state is not None:
            schedule.load_state_dict(state)
            place = steps.whole(place)
        count = 0
        while place < TOTAL * 6 and (turn == len(sizes) - 1 or count < per_size):
            yield range(place, steps.after(place)), optimizer, schedule
            place, count = steps.after(place), count + 1
        state = schedule.state_dict()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", BY_STEP)
def test_the_rate_at_each_image_is_that_of_the_planned_run(
    name: str, sizes: tuple[int, ...]
) -> None:
    planned = _rates(name, **BY_STEP[name])
    for images, optimizer, schedule in _steps_of(sizes, name, BY_STEP[name]):
        assert optimizer.param_groups[0]["lr"] == planned[images[0] // 6], images
        optimizer.step()
        schedule.advance(torch.tensor(1.0))


READERS: dict[str, dict[str, object]] = {
    "fastface": {"alpha": 0.2, "beta": 0.2, "threshold": 0.01, "patience_fraction": 0.05},
    "moving_haar": {"window": 6, "threshold": 0.01, "patience_steps": 5},
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", READERS)
def test_patience_and_windows_last_as_many_images(name: str, sizes: tuple[int, ...]) -> None:
    """The reference feeds the bare scheduler with the mean loss of each planned step's images."""
    loss_of: dict[int, float] = {}  # by image; those that a resume leaves out have none
    rates = {}
    for images, optimizer, schedule in _steps_of(sizes, name, READERS[name]):
        loss = max(20.0 - images[0] / 6, 5.0)
        loss_of |= dict.fromkeys(images, loss)
        rates[images[0]] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.advance(torch.tensor(loss, dtype=torch.float64))

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    given = {"optimizer": optimizer, "total_steps": TOTAL, "steps_per_epoch": PER_EPOCH}
    bare = build_part(PACKAGE, Part(name, READERS[name]), **given)
    expected = []
    for step in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        losses = [loss_of[image] for image in range(6 * step, 6 * step + 6) if image in loss_of]
        optimizer.step()
        bare.step(sum(losses) / len(losses) if losses else None)
    assert len(set(expected)) >= 3  # the rate has fallen more than once
    assert rates == {image: expected[image // 6] for image in rates}


def test_the_images_of_a_skipped_step_bring_no_loss() -> None:
    _, schedule = _built("fastface", {"alpha": 1.0}, Steps(images=2, planned=6, epoch=60))
    for loss in (None, torch.tensor(1.0), torch.tensor(3.0)):
        schedule.advance(loss)
    for loss in (None, None, None):
        schedule.advance(loss)
    state = schedule.state_dict()["scheduler"]
    assert state["detector"]["average"] == 2.0
    assert state["skipped_steps"] == 1


@pytest.mark.parametrize("size", [6, 3, 4, 9, 12, 24, 7])
def test_the_difference_of_neighboring_losses_is_that_of_drawn_ones(size: int) -> None:
    planned, count = 6, 6 * 7 * 2000
    draw = np.random.default_rng(0)
    of_steps = draw.normal(0, math.sqrt(planned / size), -(-count // size))
    losses = np.repeat(of_steps, size)[:count].reshape(-1, planned).mean(1)
    found = difference_of_neighbors(Steps(size, planned, 6 * 7 * 24))
    # Neighbors differ more in some places than in others, and these repeat after `size` steps.
    differences = np.diff(losses)[: len(losses) // size * size - size].reshape(-1, size)
    assert found == pytest.approx(differences.std(0).mean() / math.sqrt(2), rel=0.03)


def test_larger_steps_do_not_hide_the_noise_from_for_horizon() -> None:
    found = {}
    for size in (6, 12, 24):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
        given = {"optimizer": optimizer, "total_steps": 6000, "steps_per_epoch": 1200}
        reader = build_part(PACKAGE, Part("fastface", {"for_horizon": True}), **given)
        schedule = Schedule(reader, Steps(size, 6, 7200))
        draw = np.random.default_rng(1)
        for loss in draw.normal(10.0, 0.3 * math.sqrt(6 / size), 6 * 3000 // size):
            optimizer.step()
            schedule.advance(torch.tensor(loss))
        found[size] = schedule.state_dict()["scheduler"]["detector"]["stages"]["alpha"]
    assert found[12] == pytest.approx(found[6], rel=0.25)
    assert found[24] == pytest.approx(found[6], rel=0.25)


@pytest.mark.parametrize(
    ("options", "late", "last"),
    [
        ({"for_horizon": True}, 2 * 100 - 2 * 1200 / 202.325, 1 / 240),
        ({"for_horizon": True, "cooldown": 0.0}, 2 * 100 - 2 * 1200 / 202.325, 1.0),
        ({}, 0.0, 1.0),
        ({"cooldown": 0.5}, 0.0, 1 / 600),
    ],
)
def test_fastface_for_a_horizon_knows_epochs_and_ends_at_zero(
    options: dict[str, object], late: float, last: float
) -> None:
    # 12 epochs of 100 steps, and a loss that falls all the time.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    given = {"optimizer": optimizer, "total_steps": 1200, "steps_per_epoch": 100}
    scheduler = build_part(PACKAGE, Part("fastface", options), **given)
    assert scheduler.patience_steps == pytest.approx(0.05 * 1200 + late, abs=1)
    for step in range(1199):
        scheduler.step(100.0 - 0.05 * step)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(BASE * last)


@pytest.mark.parametrize("name", ["cosine", "fastface"])
def test_another_base_rate_scales_what_follows(name: str) -> None:
    optimizer, schedule = _built(name, {"warmup_steps": 10})
    for _ in range(5):
        optimizer.step()
        schedule.advance(torch.tensor(1.0))
    for _ in range(2):  # also when the resumed run is resumed
        other, resumed = _built(name, {"warmup_steps": 10}, base=BASE * 0.75)
        resumed.load_state_dict(schedule.state_dict())
        rate = optimizer.param_groups[0]["lr"]
        assert other.param_groups[0]["lr"] == pytest.approx(0.75 * rate, rel=1e-12)
        schedule = resumed


def test_every_schedule_is_known_by_its_file() -> None:
    expected = {
        "constant",
        "cosine",
        "fastface",
        "moving_haar",
        "multi_step",
        "polynomial",
        "trapezoid",
    }
    assert expected <= set(part_names("recognition.schedulers"))


def test_loss_readers_are_given_the_loss() -> None:
    """A loss that never falls makes FastFace halve the learning rate; one that falls does not."""
    options = {"alpha": 0.2, "beta": 0.2, "threshold": 1e-3, "patience_fraction": 0.1}
    for slope, decays in ((0.0, True), (-1.0, False)):
        optimizer, schedule = _built("fastface", dict(options))
        for step in range(TOTAL):
            optimizer.step()
            schedule.advance(torch.tensor(100.0 + slope * step))
        assert (optimizer.param_groups[0]["lr"] < BASE) == decays


def _first_rates(name: str, total: int) -> list[float]:
    """Of the first 60 steps of a run of `total` steps, whose loss falls more and more slowly."""
    options: dict[str, dict[str, object]] = {
        "fastface": {"alpha": 0.5, "beta": 0.5, "threshold": 0.01},
        "moving_haar": {"window": 4, "threshold": 0.01},
        "multi_step": {"milestones": [2, 5]},
    }
    warmup = {"warmup_steps": 5} if name in WITH_WARMUP else {}
    optimizer, schedule = _built(name, {**warmup, **options.get(name, {})}, total=total)
    rates = []
    for step in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.advance(torch.tensor(3.0 * 0.9**step))
    return rates


@pytest.mark.parametrize("name", part_names("recognition.schedulers"))
def test_a_schedule_of_any_length_has_the_same_rates_in_a_longer_run(name: str) -> None:
    """If it did not say so, a run could not be lengthened; if it said so wrongly, rates jumped."""
    short, long = _first_rates(name, TOTAL), _first_rates(name, 3 * TOTAL)
    assert any_length(name) == (short == long)
    assert name == "constant" or min(short) < BASE / 2
