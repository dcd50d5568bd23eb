"""The detectors against direct evaluations of their definitions."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.haar import FastFaceDetector, HorizonDetector, MovingHaarDetector

LONG = np.longdouble
rates = st.sampled_from([1e-3, 5e-3, 0.02, 0.3, 1.0])
losses = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=200)


def fastface_definition(losses: Sequence[float], alpha: float, beta: float) -> np.ndarray:
    """D_1 … D_n of the two-stage definition, in long double.

    The first loss is subtracted from all losses, which leaves D unchanged. A constant loss then
    gives exactly 0 instead of a rounding error of its level.
    """
    a, b = LONG(alpha), LONG(beta)
    shifted = np.asarray(losses, dtype=LONG) - LONG(losses[0])
    average = LONG(0)
    signals: list[np.longdouble] = []
    for loss in shifted[1:]:
        before, average = average, a * loss + (1 - a) * average
        fall = before - average
        signals.append(fall if not signals else b * fall + (1 - b) * signals[-1])
    return np.array(signals)


def fastface_recurrence(losses: Sequence[float], alpha: float, beta: float) -> np.ndarray:
    """D_1 … D_n by the paper's recurrence from D_0 = D_1 = α (L_0 - L_1), in long double."""
    a, b = LONG(alpha), LONG(beta)
    values = np.asarray(losses, dtype=LONG)
    signals = [a * (values[0] - values[1])] * 2
    for t in range(2, len(values)):
        fall = a * b * (values[t - 1] - values[t])
        signals.append((2 - a - b) * signals[-1] - (1 - a) * (1 - b) * signals[-2] + fall)
    return np.array(signals[1:])


def run_fastface(losses: Sequence[float], alpha: float, beta: float) -> np.ndarray:
    detector = FastFaceDetector(alpha, beta)
    signals = [detector.update(loss) for loss in losses]
    assert signals[0] is None
    return np.array(signals[1:], dtype=LONG)


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float) -> None:
    assert found.shape == expected.shape
    smallest = 1e-300  # below this, double precision has fewer digits
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max() + smallest


def long_sequences() -> dict[str, list[float]]:
    generator = np.random.default_rng(0)
    steps = np.arange(50_000)
    falling = 3 + 43 * np.exp(-steps / 9e3) + generator.normal(0, 0.8, steps.size)
    spiky = np.where(generator.random(steps.size) < 1e-3, 1e6, falling)
    return {
        "random": generator.normal(0, 1, steps.size).tolist(),
        "falling": falling.tolist(),
        "spiky": spiky.tolist(),
        "high": (1e9 + falling).tolist(),
    }


@settings(deadline=None)
@given(losses, rates, rates)
def test_fastface_equals_its_definition(losses: list[float], alpha: float, beta: float) -> None:
    assert_close(run_fastface(losses, alpha, beta), fastface_definition(losses, alpha, beta), 1e-10)


@pytest.mark.parametrize("name", ["random", "falling", "spiky", "high"])
def test_fastface_equals_its_definition_on_long_sequences(name: str) -> None:
    values = long_sequences()[name]
    assert_close(run_fastface(values, 1e-3, 1e-3), fastface_definition(values, 1e-3, 1e-3), 1e-10)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), rates, rates)
def test_fastface_of_a_constant_is_zero(loss: float, alpha: float, beta: float) -> None:
    assert not run_fastface([loss] * 50, alpha, beta).any()


@settings(deadline=None)
@given(losses, rates, rates)
def test_three_term_recurrence_equals_the_two_stages(
    losses: list[float], alpha: float, beta: float
) -> None:
    assert_close(run_fastface(losses, alpha, beta), fastface_recurrence(losses, alpha, beta), 1e-9)


@pytest.mark.parametrize("name", ["random", "falling", "spiky"])
def test_three_term_recurrence_equals_the_two_stages_on_long_sequences(name: str) -> None:
    values = long_sequences()[name]
    assert_close(run_fastface(values, 1e-3, 1e-3), fastface_recurrence(values, 1e-3, 1e-3), 1e-9)


def moving_haar_definition(losses: Sequence[float], window: int) -> np.ndarray:
    """H_t from t = 2m on: a moving mean and then the step kernel, both by np.convolve."""
    # A_m, A_{m+1}, …: the mean of the very first m losses is not used.
    means = np.convolve(np.asarray(losses)[1:], np.full(window, 1 / window), mode="valid")
    newer = (window + 1) // 2
    kernel = np.concatenate([-np.ones(newer), np.ones(window - newer)]) / window
    return np.convolve(means, kernel, mode="valid")[:-1]


def run_moving_haar(losses: Sequence[float], window: int) -> np.ndarray:
    detector = MovingHaarDetector(window)
    signals = [detector.update(loss) for loss in losses]
    assert signals[: 2 * window] == [None] * min(len(losses), 2 * window)
    return np.array(signals[2 * window :], dtype=float)


@settings(deadline=None)
@given(st.integers(2, 20), st.data())
def test_moving_haar_equals_convolution(window: int, data: st.DataObject) -> None:
    values = data.draw(
        st.lists(st.floats(-1e3, 1e3), min_size=2 * window + 1, max_size=6 * window + 3)
    )
    expected = moving_haar_definition(values, window)
    np.testing.assert_allclose(
        run_moving_haar(values, window), expected, rtol=0, atol=1e-11 * (1 + np.max(np.abs(values)))
    )


@pytest.mark.parametrize("window", [1000, 1001])
def test_moving_haar_equals_convolution_on_long_sequences(window: int) -> None:
    values = long_sequences()["falling"]
    np.testing.assert_allclose(
        run_moving_haar(values, window), moving_haar_definition(values, window), rtol=0, atol=1e-10
    )


def test_moving_haar_forgets_a_spike_completely() -> None:
    values = [*long_sequences()["random"][:500], 1e30, *long_sequences()["random"][500:1000]]
    fresh = run_moving_haar(values[501:], 50)
    np.testing.assert_array_equal(run_moving_haar(values, 50)[-fresh.size :], fresh)


@settings(deadline=None)
@given(st.integers(2, 30))
def test_moving_haar_of_a_constant(window: int) -> None:
    expected = -3.0 / window if window % 2 else 0.0
    assert run_moving_haar([3.0] * (3 * window), window) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("alpha", "beta", "name"),
    [(0.0, 0.1, "alpha"), (0.1, 1.5, "beta"), (float("nan"), 0.1, "alpha")],
)
def test_weights_outside_their_range_are_refused(alpha: float, beta: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        FastFaceDetector(alpha, beta)


def test_a_window_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 1"):
        MovingHaarDetector(1)


def horizon_definition(
    losses: Sequence[float], total_steps: int, epoch: float = 0.0
) -> list[float | None]:
    """The equations of HorizonDetector in long double, one array after another."""
    fastest = LONG(202.325) / total_steps
    if epoch and epoch <= total_steps / 10:
        fastest = np.minimum(fastest, 1 / LONG(epoch))
    slowest = np.minimum(LONG(50) / total_steps, fastest)
    values = np.asarray(losses, dtype=LONG)
    threshold = LONG(10.11625) / total_steps
    moves, noise, alphas = np.abs(np.diff(values)), LONG(0), [fastest]
    for count, move in enumerate(moves, 1):
        newest = np.maximum(slowest, LONG(1) / count)
        noise = (1 - newest) * noise + newest * move
        sigma = noise * np.sqrt(LONG(np.pi)) / 2
        wanted = (2 * threshold / (5 * sigma)) ** (LONG(2) / 3) if sigma else np.inf
        alphas.append(np.clip(wanted, slowest, fastest))
    signals: list[float | None] = [None]
    average, smoothed = values[0], LONG(0)
    for step in range(1, len(values)):
        alpha = alphas[step]
        before, average = average, alpha * values[step] + (1 - alpha) * average
        smoothed = (
            before - average if step == 1 else alpha * (before - average) + (1 - alpha) * smoothed
        )
        signals.append(smoothed if step * alpha >= 4 else None)
    return signals


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2, 2.0])
@pytest.mark.parametrize("epoch", [None, 20, 100, 300, 301])
def test_horizon_detector_equals_its_equations(noise: float, epoch: int | None) -> None:
    generator = np.random.default_rng(1)
    values = (
        3 + 20 * np.exp(-np.arange(3000) / 400) + noise * generator.normal(0, 1, 3000)
    ).tolist()
    detector = HorizonDetector(3000, steps_per_epoch=epoch)
    found = [detector.update(loss) for loss in values]
    expected = horizon_definition(values, 3000, epoch or 0)
    settled = [step for step, signal in enumerate(expected) if signal is not None]
    assert [step for step, signal in enumerate(found) if signal is not None] == settled
    assert len(settled) > 1700
    assert_close(
        np.array([found[step] for step in settled]),
        np.array([expected[step] for step in settled]),
        1e-9,
    )


def test_horizon_detector_is_the_published_one_where_noise_allows() -> None:
    values = (10 - 1e-3 * np.arange(30_000)).tolist()
    published, ours = FastFaceDetector(1e-3, 1e-3), HorizonDetector(202_325)
    for loss in values:
        expected, signal = published.update(loss), ours.update(loss)
    assert ours.threshold == pytest.approx(5e-5, rel=1e-12)
    assert signal == pytest.approx(expected, rel=1e-9)
    assert ours.delay_steps == 0


@pytest.mark.parametrize("noise", [0.05, 0.3, 0.8])
def test_horizon_detector_holds_its_noise_at_a_fifth_of_the_threshold(noise: float) -> None:
    generator = np.random.default_rng(2)
    detector = HorizonDetector(20_000)
    signals = [detector.update(loss) for loss in generator.normal(5, noise, 400_000).tolist()]
    spread = np.std([signal for signal in signals if signal is not None]) / detector.threshold
    unhindered = noise * (202.325 / 20_000) ** 1.5 / 2 / detector.threshold
    assert spread == pytest.approx(min(0.2, unhindered), rel=0.15)


def test_horizons_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="total_steps is 999: expected at least 1000"):
        HorizonDetector(999)
    with pytest.raises(ValueError, match="threshold is -1"):
        HorizonDetector(5000, threshold=-1.0)
    with pytest.raises(ValueError, match="steps_per_epoch is 0"):
        HorizonDetector(5000, steps_per_epoch=0)
