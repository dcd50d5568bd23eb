"""Every head against its paper's formula on the angle, in float64: value and gradient."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.parts import part_names
from recognition.config import ConfigError
from recognition.heads._margin import MarginHead
from recognition.parse import load_config

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
NAMES = part_names("recognition.heads")
NORM = 23.0


def build(name: str, **options: object) -> MarginHead:
    head: MarginHead = importlib.import_module(f"recognition.heads.{name}").build(**options)
    return head


def guarded(theta: float, m: float) -> float:
    return math.cos(theta + m) if theta + m < math.pi else math.cos(theta) - m * math.sin(m)


def easy(theta: float, m: float) -> float:
    return math.cos(theta + m) if theta < math.pi / 2 else math.cos(theta)


def sphereface(theta: float, m: float = 1.7) -> float:
    k = math.floor(m * theta / math.pi)
    return float((-1) ** k) * math.cos(m * theta) - 2 * k


def adaface(theta: float) -> float:
    z = min(max((NORM - 20) / (100 + 1e-3) * 0.333, -1), 1)
    return math.cos(min(max(theta - 0.4 * z, 0), math.pi)) - 0.4 - 0.4 * z


CASES: dict[str, tuple[dict[str, object], Callable[[float], float]]] = {
    "arcface": ({}, lambda theta: guarded(theta, 0.5)),
    "arcface unguarded": ({"guard": False}, lambda theta: math.cos(theta + 0.5)),
    "cosface": ({"margin": 0.35}, lambda theta: math.cos(theta) - 0.35),
    "sphereface": ({}, sphereface),
    "sphereface 4": ({"margin": 4.0}, lambda theta: sphereface(theta, 4.0)),
    "combined": (
        {"m1": 1.1, "m2": 0.3, "m3": 0.2},
        lambda theta: math.cos(1.1 * theta + 0.3) - 0.2,
    ),
    "combined normface": ({}, math.cos),
    "adaface": ({}, adaface),
    "magface": ({}, lambda theta: easy(theta, 0.45 + 0.35 * (NORM - 10) / 100)),
    "magface everywhere": (
        {"easy_margin": False},
        lambda theta: guarded(theta, 0.45 + 0.35 * (NORM - 10) / 100),
    ),
    "curricularface": ({}, lambda theta: guarded(theta, 0.5)),
    "elasticface": ({"std": 0.0}, lambda theta: math.cos(theta + 0.5)),
    "elasticface cos": ({"std": 0.0, "kind": "cos"}, lambda theta: math.cos(theta) - 0.35),
}


def test_the_table_names_heads() -> None:
    assert {case.split()[0] for case in CASES} <= set(NAMES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_every_head_gives_finite_targets_and_slopes(name: str, dtype: torch.dtype) -> None:
    """It holds for a head that is in no table too."""
    cos = torch.tensor([-1.0, -0.5, 0.0, 0.25, 0.75, 1.0], dtype=dtype, requires_grad=True)
    value = build(name).target(cos, torch.full((6,), NORM, dtype=dtype))
    assert value.shape == (6,)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    (slope,) = torch.autograd.grad(value.sum(), cos)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert build(name).scale > 0


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60, deadline=None)
@given(theta=st.floats(0.01, math.pi - 0.01))
def test_value_and_slope(case: str, theta: float) -> None:
    options, formula = CASES[case]
    head = build(case.split()[0], **options)
    cos = torch.tensor([math.cos(theta)], dtype=torch.float64, requires_grad=True)
    value = head.target(cos, torch.tensor([NORM], dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), cos)
    assert value.item() == pytest.approx(formula(theta), abs=1e-9)
    step = 1e-6
    one_sided = [
        (formula(theta + sign * step) - formula(theta)) / (sign * step) for sign in (1, -1)
    ]
    got = slope.item() * -math.sin(theta)
    # two sides: the formulas have corners
    assert min(abs(got - side) for side in one_sided) < 1e-4 * max(1, abs(got))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_ends_and_small_types(case: str, dtype: torch.dtype) -> None:
    options, formula = CASES[case]
    head = build(case.split()[0], **options)
    cos = torch.tensor([-1.0, -0.5, 0.0, 0.25, 0.75, 1.0], dtype=dtype, requires_grad=True)
    value = head.target(cos, torch.full((6,), NORM, dtype=dtype))
    (slope,) = torch.autograd.grad(value.sum(), cos)
    expected = [formula(math.acos(c)) for c in cos.tolist()]
    tolerance = 1e-9 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(value.detach().double().numpy(), expected, atol=tolerance)
    assert value.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert slope.isfinite().all()
    assert (slope > -1e-3).all() or case in ("arcface unguarded", "combined", "elasticface")


@pytest.mark.parametrize(
    ("case", "at_one"), [("cosface", 1.0), ("sphereface", 1.7**2), ("combined normface", 1.0)]
)
def test_slope_at_one_is_the_limit(case: str, at_one: float) -> None:
    cos = torch.ones(1, dtype=torch.float64, requires_grad=True)
    head = build(case.split()[0], **CASES[case][0])
    (slope,) = torch.autograd.grad(head.target(cos, torch.ones(1)).sum(), cos)
    assert slope.item() == pytest.approx(at_one, rel=1e-6)


def test_cosines_that_rounding_left_outside_their_range() -> None:
    for name in NAMES:
        cos = torch.tensor([1.0000002, -1.0000002], requires_grad=True)
        value = build(name).target(cos, torch.full((2,), NORM))
        (slope,) = torch.autograd.grad(value.sum(), cos)
        assert value.isfinite().all(), name
        assert slope.isfinite().all(), name


@pytest.mark.parametrize("name", ["arcface", "combined"])
def test_straight_through_is_insightface_s_gradient(name: str) -> None:
    options = {} if name == "arcface" else {"m2": 0.5}
    cos = torch.tensor([-0.99, 0.0, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    exact = build(name, gradient="exact", **options).target(cos, cos)
    value = build(name, gradient="straight_through", **options).target(cos, cos)
    assert torch.equal(value, exact)
    assert torch.autograd.grad(value.sum(), cos)[0].tolist() == [1, 1, 1, 1]
    (slope,) = torch.autograd.grad(exact[2], cos)
    assert 64 * slope[2].item() == pytest.approx(
        64 * math.sin(math.acos(0.3) + 0.5) / math.sin(math.acos(0.3))
    )


def test_adaface_follows_lengths_and_keeps_its_averages_finite() -> None:
    head = build("adaface")
    norms = torch.tensor([5.0, 10.0, 40.0, 400.0])
    seen = np.array([5.0, 10.0, 40.0, 100.0])
    head.update_stats(torch.zeros(4), norms)
    mean, std = 0.99 * 20 + 0.01 * seen.mean(), 0.99 * 100 + 0.01 * seen.std(ddof=1)
    z = np.clip((seen - mean) / (std + 1e-3) * 0.333, -1, 1)
    theta = math.acos(0.4)
    expected = np.cos(theta - 0.4 * z) - 0.4 - 0.4 * z
    norms.requires_grad_()
    value = head.target(torch.full((4,), 0.4), norms)
    np.testing.assert_allclose(value.detach().numpy(), expected, atol=1e-6)
    assert not value.requires_grad
    head.update_stats(torch.zeros(4), torch.tensor([1.0, 2.0, math.inf, math.nan]))
    assert torch.tensor([head.state_dict()["mean"], head.state_dict()["std"]]).isfinite().all()


def test_magface_gradient_reaches_the_length() -> None:
    head = build("magface")
    norms = torch.tensor([3.0, 23.0, 60.0, 200.0], dtype=torch.float64, requires_grad=True)
    cos = torch.full((4,), 0.3, dtype=torch.float64)
    penalty = head.penalty(norms)
    assert penalty is not None
    clipped = np.array([10.0, 23.0, 60.0, 110.0])
    np.testing.assert_allclose(
        penalty.detach().numpy(), 35 * (1 / clipped + clipped / 110**2), rtol=1e-12
    )
    theta, margin = math.acos(0.3), 0.45 + 0.35 * (clipped - 10) / 100
    inside = np.array([0.0, 1.0, 1.0, 0.0])
    slope = -np.sin(theta + margin) * 0.35 / 100 * inside
    np.testing.assert_allclose(
        torch.autograd.grad(head.target(cos, norms).sum(), norms)[0].numpy(), slope, rtol=1e-6
    )
    slope = 35 * (1 / 110**2 - 1 / clipped**2) * inside
    np.testing.assert_allclose(
        torch.autograd.grad(penalty.sum(), norms)[0].numpy(), slope, rtol=1e-9, atol=1e-15
    )


def magface_rule(
    embeddings: np.ndarray, centers: np.ndarray, labels: list[int], easy_margin: bool
) -> float:
    """Cross-entropy plus regularizer as in MagFace's released code, one sample after another."""
    losses = []
    for embedding, label in zip(embeddings, labels, strict=True):
        length = math.hypot(*embedding)
        clipped = min(max(length, 10.0), 110.0)
        margin = 0.45 + (clipped - 10.0) / 100.0 * 0.35
        cosines = [embedding @ center / length / math.hypot(*center) for center in centers]
        theta = math.acos(cosines[label])
        cosines[label] = easy(theta, margin) if easy_margin else guarded(theta, margin)
        total = sum(math.exp(64 * (cos - cosines[label])) for cos in cosines)
        losses.append(math.log(total) + 35 * (1 / clipped + clipped / 110**2))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("easy_margin", [True, False])
def test_magface_loss_and_gradient_are_those_of_the_released_rule(easy_margin: bool) -> None:
    generator = np.random.default_rng(8)
    centers = generator.normal(size=(7, 5))
    lengths = np.array([4.0, 15, 30, 60, 90, 109, 130, 40, 20])
    labels = [0, 1, 2, 3, 4, 5, 6, 0, 1]
    embeddings = generator.normal(size=(9, 5))
    embeddings[:3] += 2 * centers[:3]  # cosines above 0
    embeddings[-3:] = [0.1 - centers[6], 0.3 - centers[0], 0.2 - centers[1]]  # past pi
    embeddings *= (lengths / np.linalg.norm(embeddings, axis=1))[:, None]

    head = build("magface", easy_margin=easy_margin)
    leaves = [torch.tensor(array, requires_grad=True) for array in (embeddings, centers)]
    norms = leaves[0].norm(dim=1)
    cos = (leaves[0] / norms[:, None]) @ (leaves[1] / leaves[1].norm(dim=1, keepdim=True)).T
    own = cos[range(9), labels]
    assert 2 < (own > 0.05).sum() < 6
    assert (own.abs() > 1e-3).all()
    logits = cos.scatter(1, torch.tensor(labels)[:, None], head.target(own, norms)[:, None])
    penalty = head.penalty(norms)
    assert penalty is not None
    loss = torch.nn.functional.cross_entropy(64 * logits, torch.tensor(labels)) + penalty.mean()
    gradients = torch.autograd.grad(loss, leaves)

    assert loss.item() == pytest.approx(
        magface_rule(embeddings, centers, labels, easy_margin), rel=1e-12
    )
    for array, gradient in zip((embeddings, centers), gradients, strict=True):
        for place in np.ndindex(*array.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = array.copy()
                moved[place] += step
                arrays = (moved, centers) if array is embeddings else (embeddings, moved)
                sides.append(magface_rule(arrays[0], arrays[1], labels, easy_margin))
            slope = (sides[0] - sides[1]) / 2e-5
            assert gradient[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_curricularface_negatives() -> None:
    head = build("curricularface")
    for _ in range(3):
        head.update_stats(torch.tensor([0.2, 0.6]), torch.ones(2))
    t = 0.4 * (1 - 0.99**3)
    cos = torch.tensor([[-0.9, 0.1, 0.2, 0.95]], dtype=torch.float64, requires_grad=True)
    bound = math.cos(math.acos(0.6) + 0.5)
    expected = [c * (t + c) if c > bound else c for c in cos[0].tolist()]
    value = head.negatives(cos, torch.tensor([[0.6]], dtype=torch.float64))
    np.testing.assert_allclose(value[0].detach().numpy(), expected, rtol=1e-6)
    slopes = [t + 2 * c if c > bound else 1 for c in cos[0].tolist()]
    np.testing.assert_allclose(
        torch.autograd.grad(value.sum(), cos)[0][0].numpy(), slopes, rtol=1e-6
    )


def test_elasticface_draws_by_seed_and_step() -> None:
    one, two, other = (
        build("elasticface", seed=1),
        build("elasticface", seed=1),
        build("elasticface", seed=2),
    )
    cos = torch.zeros(20000, dtype=torch.float64)
    for head in (one, two, other):
        head.update_stats(cos, cos)
    first = one.target(cos, cos)
    assert torch.equal(first, two.target(cos, cos))
    assert not torch.equal(first, other.target(cos, cos))
    margins = -first.asin()  # cos(pi/2 + m) = -sin m
    assert margins.mean().item() == pytest.approx(0.5, abs=5e-4)
    assert margins.std().item() == pytest.approx(0.0125, rel=0.03)
    one.update_stats(cos, cos)
    assert not torch.equal(first, one.target(cos, cos))
    resumed = build("elasticface", seed=1)
    resumed.load_state_dict(one.state_dict())
    assert torch.equal(one.target(cos, cos), resumed.target(cos, cos))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("arcface", "gradient=exakt"),
        ("arcface", "margin=-0.5"),
        ("sphereface", "margin=0.5"),
        ("elasticface", "kind=sin"),
        *((name, "scale=0") for name in NAMES),
    ],
)
def test_bad_options_are_named(name: str, option: str) -> None:
    key, _, value = option.partition("=")
    with pytest.raises(ConfigError, match=rf"head\.{key}: .*{value}"):
        load_config(QUICKSTART, [f"head={{name: {name}}}", f"head.{option}"])


def test_magface_lengths_are_in_order() -> None:
    with pytest.raises(ValueError, match=r"head\.l_a: found 200\.0.*110"):
        build("magface", l_a=200.0)
