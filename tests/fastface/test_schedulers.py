"""The schedulers behave as torch LR schedulers and follow the published rules to the letter."""

import io
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Optimizer

from fastface import schedulers
from fastface.schedulers import FastFaceLR, LossScheduler, MovingHaarLR


def make_optimizer(*rates: float) -> Optimizer:
    return SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.02,)]
    )


MAKERS: dict[str, Callable[[Optimizer], LossScheduler]] = {
    "fastface": lambda optimizer: FastFaceLR(
        optimizer, 400, alpha=0.1, beta=0.1, threshold=0.01, warmup_steps=7
    ),
    "horizon": lambda optimizer: FastFaceLR.for_horizon(
        optimizer, 1000, warmup_steps=7, cooldown=0.7
    ),
    "moving-haar": lambda optimizer: MovingHaarLR(
        optimizer, 6, threshold=0.05, patience_steps=9, warmup_steps=7
    ),
}


def bumpy_losses(count: int = 400) -> list[float]:
    """A loss that falls, rests and falls again, so that learning rates drop, stay and rise."""
    generator = np.random.default_rng(3)
    levels = (
        5 - 0.08 * np.clip(np.arange(count), 0, 60) - 0.05 * np.clip(np.arange(count) - 250, 0, 30)
    )
    losses: list[float] = (levels + generator.normal(0, 0.02, count)).tolist()
    return losses


def rates_over(scheduler: LossScheduler, losses: list[float]) -> list[list[float]]:
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        assert scheduler.get_last_lr() == rates[-1]
    return rates


def fastface_rule(
    signals: list[float | None], *, patience: float, threshold: float, decays: int
) -> list[float]:
    """The learning rate after each step by the published rule on D_t, in units of its base."""
    scale, run, rates = 1.0, 0, []
    for signal in signals:
        run = run + 1 if signal is not None and signal < threshold else 0
        if run > patience and decays:
            scale, run, decays = scale / 2, 0, decays - 1
        rates.append(scale)
    return rates


def test_fastface_follows_the_published_rule() -> None:
    losses = bumpy_losses()
    average, signal = losses[0], None
    signals: list[float | None] = [None]
    for loss in losses[1:]:
        average, before = 0.1 * loss + 0.9 * average, average
        fall = before - average
        signal = fall if signal is None else 0.2 * fall + 0.8 * signal
        signals.append(signal)
    expected = fastface_rule(signals, patience=0.05 * 400, threshold=0.01, decays=3)
    assert len(set(expected)) == 4
    scheduler = FastFaceLR(
        make_optimizer(1.0), 400, alpha=0.1, beta=0.2, threshold=0.01, max_decays=3
    )
    assert [rate for (rate,) in rates_over(scheduler, losses)] == expected
    assert scheduler.decays == 3
    assert scheduler.signal == pytest.approx(signals[-1], rel=1e-9)


def moving_haar_rule(losses: list[float], window: int, threshold: float) -> list[float]:
    """The learning rate after each step by the rule of the authors' code, in units of its base.

    Their code is commented out in lr_scheduler.py and MHLR_temp.py of the released repository. It
    takes its first mean at step m and its first response at step 2m, and its third change in a row
    is the restart. The arithmetic is exact here.
    """
    half, means, scale, run, halvings = window // 2, [], 1.0, 0, 0
    rates = []
    for step in range(len(losses)):
        if step >= window:
            means.append(sum(map(Fraction, losses[step - window + 1 : step + 1])) / window)
        if step >= 2 * window:
            seen = means[step - 2 * window : step - window]
            response = (sum(seen[:half]) - sum(seen[half:])) / window
            run, halvings = (run + 1, halvings) if response < threshold else (0, 0)
        if run > 2 * window:
            run, halvings = 0, halvings + 1
            scale *= 4 if halvings == 3 else 0.5
            halvings %= 3
        rates.append(scale)
    return rates


@settings(deadline=None)
@given(
    window=st.integers(2, 7),
    plateaus=st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 90)), min_size=1, max_size=6),
    noise=st.integers(0, 2),
)
def test_moving_haar_follows_the_authors_rule(
    window: int, plateaus: list[tuple[int, int]], noise: int
) -> None:
    levels = [level for level, steps in plateaus for _ in range(steps)]
    losses = [level + noise * (step % 3) / 8 for step, level in enumerate(levels)]
    scheduler = MovingHaarLR(make_optimizer(1.0), window, threshold=0.0625, restart_after=2)
    expected = moving_haar_rule(losses, window, 0.0625)
    assert [rate for (rate,) in rates_over(scheduler, losses)] == expected


def test_the_first_change_of_moving_haar_is_where_the_authors_code_makes_it() -> None:
    # The first response is at step 2m = 8, and the patience is 2m steps.
    losses = [2.0] * 50
    rates = [rate for (rate,) in rates_over(MovingHaarLR(make_optimizer(1.0), 4), losses)]
    assert rates.index(0.5) == moving_haar_rule(losses, 4, 0.06).index(0.5) == 16


def test_moving_haar_halves_the_learning_rate_three_times_and_then_raises_it() -> None:
    # H of a constant loss is 0 from step 2m = 8 on. With P = 4 every fifth stationary step
    # changes the learning rate.
    scheduler = MovingHaarLR(make_optimizer(1.0), 4, patience_steps=4)
    rates = [rate for (rate,) in rates_over(scheduler, [2.0] * 38)]
    changes = [
        (step, after / before)
        for step, (before, after) in enumerate(pairwise(rates), 1)
        if before != after
    ]
    assert changes == [(12, 0.5), (17, 0.5), (22, 0.5), (27, 4.0), (32, 0.5), (37, 0.5)]


def test_one_falling_step_clears_both_counts_of_moving_haar() -> None:
    scheduler = MovingHaarLR(make_optimizer(1.0), 4, patience_steps=4)
    rates_over(scheduler, [2.0] * 23)  # three halvings
    rates_over(scheduler, [-3.0] * 5)  # a drop gives at least one H above the threshold
    assert scheduler.decays_in_a_row == 0
    rates_over(scheduler, [-3.0] * 20)
    assert scheduler.decays > 3
    assert scheduler.scale < 0.125  # so it was halved, not raised


def test_moving_haar_never_restarts_if_restart_after_is_none() -> None:
    scheduler = MovingHaarLR(make_optimizer(1.0), 4, patience_steps=4, restart_after=None)
    assert rates_over(scheduler, [2.0] * 38)[-1] == [0.5**6]


def test_default_patience_is_two_windows() -> None:
    assert MovingHaarLR(make_optimizer(), 4000).patience_steps == 8000


def test_every_parameter_group_keeps_its_proportion() -> None:
    scheduler = FastFaceLR(make_optimizer(0.1, 0.01), 100, threshold=1.0)
    rates_over(scheduler, [1.0] * 14)
    assert scheduler.get_last_lr() == [0.025, 0.0025]
    assert [group["initial_lr"] for group in scheduler.optimizer.param_groups] == [0.1, 0.01]


def test_a_group_added_later_decays_from_its_own_learning_rate() -> None:
    scheduler = FastFaceLR(make_optimizer(0.1), 100, threshold=1.0)
    rates_over(scheduler, [1.0] * 7)
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.3})
    for _ in range(6):
        scheduler.step(1.0)
    assert scheduler.get_last_lr() == pytest.approx([0.025, 0.15])


def test_a_tensor_learning_rate_is_set_in_place() -> None:
    rate = torch.tensor(0.5)
    scheduler = FastFaceLR(SGD([nn.Parameter(torch.zeros(1))], lr=rate), 100, threshold=1.0)
    rates = scheduler.optimizer.param_groups[0]["lr"]
    for _ in range(7):
        scheduler.step(1.0)
    assert rates.item() == 0.25
    assert scheduler.get_last_lr()[0] is not rates


@pytest.mark.parametrize("make", [FastFaceLR, FastFaceLR.for_horizon])
@pytest.mark.parametrize("cooldown", [0.25, 0.3333, 1.0])
def test_the_cooldown_is_a_straight_line_to_zero_over_the_rate_without_it(
    make: Callable[..., FastFaceLR], cooldown: float
) -> None:
    losses = [5.0 - 0.01 * min(step, 400) for step in range(1020)]  # the run has 1000 steps
    settings = {"threshold": 2e-3, "warmup_steps": 50}
    plain = rates_over(make(make_optimizer(0.1, 0.3), 1000, cooldown=0.0, **settings), losses)
    scheduler = make(make_optimizer(0.1, 0.3), 1000, cooldown=cooldown, **settings)
    assert scheduler.get_last_lr() == pytest.approx([0.1 / 50, 0.3 / 50])
    rates = rates_over(scheduler, losses)
    for done, (found, before) in enumerate(zip(rates, plain, strict=True), 1):
        left = min(1.0, max(1000 - done, 0) / (1000 * cooldown))
        assert found == pytest.approx([rate * left for rate in before], rel=1e-12)
    assert scheduler.decays > 2
    assert 0.0 < rates[998][0] < 1e-3  # of the last step of the run
    assert rates[999] == [0.0, 0.0]


def test_a_group_added_in_the_cooldown_cools_too() -> None:
    scheduler = FastFaceLR(make_optimizer(0.1), 100, threshold=-1.0, cooldown=0.5)
    rates_over(scheduler, [1.0] * 60)
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.3})
    rates_over(scheduler, [1.0] * 15)
    assert scheduler.get_last_lr() == pytest.approx([0.05, 0.15])


@pytest.mark.parametrize("name", MAKERS)
def test_warm_up_rises_linearly_and_counts_nothing(name: str) -> None:
    optimizer = make_optimizer(0.7)
    scheduler = MAKERS[name](optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(7):
        scheduler.step(1.0)
        assert scheduler.stationary_steps == 0
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7])


def test_the_detector_runs_during_warm_up() -> None:
    losses = bumpy_losses(30)
    signals = []
    for warmup_steps in (0, 20):
        scheduler = FastFaceLR(make_optimizer(), 400, warmup_steps=warmup_steps)
        rates_over(scheduler, losses)
        signals.append(scheduler.signal)
    assert signals[0] == signals[1]


def test_the_first_step_after_warm_up_counts() -> None:
    scheduler = FastFaceLR(make_optimizer(), 400, threshold=1.0, warmup_steps=3)
    counts = []
    for _ in range(6):
        scheduler.step(1.0)
        counts.append(scheduler.stationary_steps)
    assert counts == [0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("name", MAKERS)
def test_nonfinite_losses_and_skipped_steps_leave_no_trace(name: str) -> None:
    losses = bumpy_losses()
    clean, dirty = MAKERS[name](make_optimizer()), MAKERS[name](make_optimizer())
    rates_over(clean, losses)
    for step, loss in enumerate(losses):
        dirty.step(loss)
        if step % 50 == 20:
            dirty.step(None)
            dirty.step(None)
        if step % 50 == 30:
            dirty.step((math.nan, math.inf, -math.inf)[step % 3])
    assert (dirty.skipped_steps, dirty.nonfinite_losses) == (16, 8)
    for field in ("signal", "scale", "decays", "stationary_steps"):
        assert getattr(dirty, field) == getattr(clean, field)
    assert clean.decays > 0


def test_a_cpu_tensor_is_read_at_once() -> None:
    losses = bumpy_losses()
    floats, tensors = MAKERS["fastface"](make_optimizer()), MAKERS["fastface"](make_optimizer())
    for loss in losses:
        floats.step(loss)
        tensors.step(torch.tensor(loss, dtype=torch.float64, requires_grad=True))
        assert tensors.signal == floats.signal
    assert tensors.get_last_lr() == floats.get_last_lr() != [0.02]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(saved_at=st.integers(0, 399))
def test_a_state_round_trip_at_any_step_changes_nothing(name: str, saved_at: int) -> None:
    losses = bumpy_losses()
    whole = rates_over(MAKERS[name](make_optimizer(0.1, 0.3)), losses)
    first, second = MAKERS[name](make_optimizer(0.1, 0.3)), MAKERS[name](make_optimizer(0.1, 0.3))
    rates = rates_over(first, losses[:saved_at])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    # The saved state must not change with the scheduler that continues.
    rates_over(first, losses[saved_at : saved_at + 5])
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.get_last_lr() == [group["lr"] for group in second.optimizer.param_groups]
    assert rates + rates_over(second, losses[saved_at:]) == whole
    assert len({tuple(rate) for rate in whole}) > 8


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_kept_in_memory_is_a_snapshot(name: str) -> None:
    scheduler = MAKERS[name](make_optimizer())
    rates_over(scheduler, bumpy_losses()[:50])
    state, text = scheduler.state_dict(), repr(scheduler.state_dict())
    rates_over(scheduler, bumpy_losses()[50:])
    assert repr(state) == text
    fresh = MAKERS[name](make_optimizer())
    fresh.load_state_dict(state)
    rates_over(fresh, bumpy_losses()[50:])
    assert repr(state) == text


def test_the_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="not the state of a FastFaceLR"):
        MAKERS["fastface"](make_optimizer()).load_state_dict(
            MAKERS["moving-haar"](make_optimizer()).state_dict()
        )
    with pytest.raises(ValueError, match="not the state of a FastFaceLR"):
        MAKERS["fastface"](make_optimizer()).load_state_dict(
            MAKERS["horizon"](make_optimizer()).state_dict()
        )
    with pytest.raises(ValueError, match="parameter groups"):
        MAKERS["fastface"](make_optimizer()).load_state_dict(
            MAKERS["fastface"](make_optimizer(0.1, 0.2)).state_dict()
        )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": 9, "threshold": math.nan}, "threshold"),
        ({"total_steps": 9, "patience_fraction": 1.5}, "patience_fraction"),
        ({"total_steps": 9, "factor": 2.0}, "factor"),
        ({"total_steps": 9, "cooldown": 1.5}, "cooldown"),
        ({"total_steps": 9, "max_decays": -1}, "max_decays"),
        ({"total_steps": 9, "warmup_steps": -1}, "warmup_steps"),
        ({"window": 9, "patience_steps": -1}, "patience_steps"),
        ({"window": 9, "factor": 0.0}, "factor"),
        ({"window": 9, "restart_after": 0}, "restart_after"),
        ({"window": 9, "restart_factor": 0.5}, "restart_factor"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, float], name: str) -> None:
    make = FastFaceLR if "total_steps" in arguments else MovingHaarLR
    with pytest.raises(ValueError, match=f"^{name} is .*: expected"):
        make(make_optimizer(), **arguments)  # type: ignore[arg-type]


class GpuScalar(torch.Tensor):
    """A 0-d tensor that claims to be on a GPU and fails the test if its value is read there."""

    is_cuda = True

    def item(self) -> float:
        raise AssertionError("a CUDA loss was read with a device sync")

    __float__ = item


class LateCopy:
    """Stands in for PinnedCopy and counts how often a value is read."""

    waits = 0

    def start(self, loss: torch.Tensor) -> None:
        self.loss = loss.as_subclass(torch.Tensor).detach().clone()

    def value(self) -> float:
        LateCopy.waits += 1
        return self.loss.item()


@pytest.fixture
def _late_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedulers, "PinnedCopy", LateCopy)
    LateCopy.waits = 0


def gpu(loss: float) -> torch.Tensor:
    return torch.tensor(loss, dtype=torch.float64).as_subclass(GpuScalar)


@pytest.mark.usefixtures("_late_copies")
@pytest.mark.parametrize("name", MAKERS)
def test_cuda_losses_are_read_one_step_later(name: str) -> None:
    losses = bumpy_losses()
    losses[100] = math.nan
    plain, lagging = MAKERS[name](make_optimizer()), MAKERS[name](make_optimizer())
    signals: list[float | None] = [None]
    for step, loss in enumerate(losses):
        lagging.step(gpu(loss))
        assert LateCopy.waits == step  # Only the values of earlier steps were read.
        assert lagging.signal == signals[-1]
        plain.step(loss)
        signals.append(plain.signal)
    lagging.flush()
    for field in ("signal", "scale", "decays", "stationary_steps", "nonfinite_losses"):
        assert getattr(lagging, field) == getattr(plain, field)
    lagging.flush()
    assert LateCopy.waits == len(losses)
    assert lagging.get_last_lr() == plain.get_last_lr()


@pytest.mark.usefixtures("_late_copies")
@pytest.mark.parametrize("saved_at", [0, 1, 5, 7, 8, 200, 399])
@pytest.mark.parametrize("name", MAKERS)
def test_the_state_holds_a_loss_that_is_on_its_way(name: str, saved_at: int) -> None:
    losses = bumpy_losses()
    whole, first, second = (MAKERS[name](make_optimizer()) for _ in range(3))
    rates: list[list[float | torch.Tensor]] = []
    for step, loss in enumerate(losses):
        whole.step(gpu(loss))
        if step == saved_at:
            second.load_state_dict(first.state_dict())
        current = first if step < saved_at else second
        current.step(gpu(loss))
        rates.append(whole.get_last_lr())
        assert current.get_last_lr() == rates[-1]
    assert len({rate for (rate,) in rates}) > 8


@pytest.mark.usefixtures("_late_copies")
def test_floats_after_a_cuda_loss_keep_their_order() -> None:
    mixed, plain = MAKERS["fastface"](make_optimizer()), MAKERS["fastface"](make_optimizer())
    on_gpu = (True, True, False, False, True, False, True, True)
    for loss, sent in zip(bumpy_losses()[:8], on_gpu, strict=True):
        mixed.step(gpu(loss) if sent else loss)
        plain.step(loss)
    mixed.flush()
    assert mixed.signal == plain.signal


@pytest.mark.usefixtures("_late_copies")
def test_a_loss_that_is_not_a_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a 0-d tensor"):
        MAKERS["fastface"](make_optimizer()).step(torch.zeros(3).as_subclass(GpuScalar))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and pytest -m cuda")
def test_cuda_losses_on_a_gpu() -> None:
    losses = bumpy_losses()
    plain, lagging = MAKERS["fastface"](make_optimizer()), MAKERS["fastface"](make_optimizer())
    for loss in losses:
        with torch.cuda.device(0):
            torch.cuda.set_sync_debug_mode("error")
            lagging.step(torch.full((), loss, device="cuda", dtype=torch.float64))
            torch.cuda.set_sync_debug_mode("default")
        plain.step(loss)
    lagging.flush()
    assert lagging.signal == plain.signal
    assert lagging.get_last_lr() == plain.get_last_lr()
