"""The full classifier against a literal loss, and its fused update against torch.optim.SGD."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.parts import part_names
from recognition.classifiers import full
from recognition.classifiers._matmul import FloatName
from recognition.config import ConfigError
from recognition.distributed import Ranks
from recognition.heads import adaface, arcface, cosface, curricularface
from recognition.heads._margin import MarginHead
from recognition.parse import load_config

TAKEN = torch.tensor(True)

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
B, C, D = 12, 37, 16
HEADS = part_names("recognition.heads")
Stub = Callable[[int], nn.Module]
Loss = Callable[..., torch.Tensor]


def batch(seed: int = 0, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(B, D, generator=draw, dtype=torch.float64) * spread
    return embeddings.requires_grad_(), torch.randint(C, (B,), generator=draw)


def near_labels(
    embeddings: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Embeddings moved towards their own center and another one: cosines spread over [-1, 1]."""
    towards = F.normalize(weight.detach().double())
    pull = torch.linspace(0, 4, B, dtype=torch.float64)[:, None] * 3
    return (
        embeddings.detach() + pull * (towards[labels] + 0.7 * towards[labels - 1])
    ).requires_grad_()


@pytest.mark.parametrize("chunk", [1, 5, 37, "auto"])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_of_every_head(
    name: str, chunk: int | Literal["auto"], stub: Stub, literal: Loss
) -> None:
    head = importlib.import_module(f"recognition.heads.{name}").build()
    build = full.build(backbone=stub(D), classes=C, head=head, ranks=Ranks(), seed=3, chunk=chunk)
    classifier = build.double()
    embeddings, labels = batch()
    embeddings = near_labels(embeddings, labels, classifier.weight)
    # This moves the head's averages, which the literal loss then uses.
    loss = classifier(stub(D), embeddings, labels)
    got = torch.autograd.grad(loss, (embeddings, classifier.weight))
    expected = literal(embeddings, classifier.weight, labels, head)
    wanted = torch.autograd.grad(expected, (embeddings, classifier.weight))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["cosface", "curricularface"])
@pytest.mark.parametrize(("sub_centers", "filter_above"), [(3, 0.0), (1, 0.3), (2, 0.25)])
def test_sub_centers_and_filtering(
    name: str, sub_centers: int, filter_above: float, stub: Stub, literal: Loss
) -> None:
    head = importlib.import_module(f"recognition.heads.{name}").build()
    options: dict[str, Any] = {"sub_centers": sub_centers, "filter_above": filter_above}
    classifier = full.build(
        backbone=stub(D), classes=C, head=head, ranks=Ranks(), seed=3, chunk=10, **options
    ).double()
    assert classifier.weight.shape == (C * sub_centers, D)
    embeddings, labels = batch()
    embeddings = near_labels(embeddings, labels * sub_centers, classifier.weight)
    loss = classifier(stub(D), embeddings, labels)
    got = torch.autograd.grad(loss, (embeddings, classifier.weight))
    expected = literal(embeddings, classifier.weight, labels, head, **options)
    wanted = torch.autograd.grad(expected, (embeddings, classifier.weight))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-10)


def test_no_infinite_loss_at_full_scale(stub: Stub) -> None:
    """All cosines are -1. A shift by the scale alone would leave exp(-128) = 0 in the logarithm."""
    classifier = full.build(
        backbone=stub(2), classes=3, head=cosface.build(), ranks=Ranks(), seed=0
    )
    classifier.weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    loss = classifier(stub(2), torch.tensor([[-5.0, 0.0]]), torch.tensor([1]))
    expected = torch.logsumexp(torch.tensor([-64.0, -64.0 - 25.6, -64.0]), 0) + 64 + 25.6
    torch.testing.assert_close(loss, expected)


def test_small_losses_keep_their_digits(stub: Stub) -> None:
    """The target's logit minus a sum of all exponentials would be rounding noise, even negative."""
    classifier = full.build(
        backbone=stub(2), classes=3, head=cosface.build(), ranks=Ranks(), seed=0
    )
    classifier.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    loss = classifier(stub(2), torch.tensor([[7.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(
        2 * torch.tensor(-38.4, dtype=torch.float64).exp().item(), rel=1e-5
    )


@pytest.mark.parametrize("momentum_dtype", ["float32", "bfloat16"])
def test_fused_update_equals_sgd_after_a_hundred_steps(
    momentum_dtype: FloatName, stub: Stub, literal: Loss
) -> None:
    """The reference is in float64, because rounding in float32 would move its gradients by 1e-5."""
    classifier = full.build(
        backbone=stub(D),
        classes=C,
        head=arcface.build(),
        ranks=Ranks(),
        seed=3,
        chunk=8,
        fused=True,
        momentum_dtype=momentum_dtype,
    )
    plain = nn.Parameter(classifier.weight.double())
    optimizer = torch.optim.SGD([plain], lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert not list(classifier.parameters())
    for step in range(100 if momentum_dtype == "float32" else 20):
        embeddings, labels = batch(step)
        embeddings = embeddings.detach().float().requires_grad_()
        classifier.before_step(0.1)
        loss = classifier(stub(D), embeddings, labels)
        (got,) = torch.autograd.grad(loss, embeddings)
        classifier.after_step(TAKEN)
        optimizer.zero_grad()
        exact = embeddings.detach().double().requires_grad_()
        expected = literal(exact, plain, labels, arcface.build())
        (wanted,) = torch.autograd.grad(expected, exact, retain_graph=True)
        expected.backward()
        optimizer.step()
        if momentum_dtype == "float32":
            torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
            assert ((got - wanted).norm() / wanted.norm()).item() < 1e-5
    error = ((classifier.weight - plain).norm() / plain.norm()).item()
    assert error < (1e-5 if momentum_dtype == "float32" else 1e-2)
    assert classifier.velocity.dtype == getattr(torch, momentum_dtype)


def test_fused_update_leaves_centers_alone_on_a_bad_loss_and_outside_training(stub: Stub) -> None:
    classifier = full.build(
        backbone=stub(D), classes=C, head=cosface.build(), ranks=Ranks(), seed=3, fused=True
    )
    classifier.before_step(0.1)
    before = copy.deepcopy(classifier.state_dict())
    embeddings, labels = batch()
    spoiled = embeddings.detach().float()
    spoiled[0] = torch.nan
    classifier(stub(D), spoiled.requires_grad_(), labels).backward()
    classifier.eval()
    classifier(stub(D), embeddings.detach().float().requires_grad_(), labels).backward()
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("override", ["optim.accumulation=2", "run.precision=fp16"])
def test_fused_update_is_refused_where_it_would_be_wrong(override: str) -> None:
    overrides = ["classifier={name: full, fused: true}", "optim.nesterov=false"]
    load_config(QUICKSTART, [*overrides, "optim.accumulation=1", "run.precision=bf16"])
    with pytest.raises(ConfigError, match=rf"classifier\.fused: .*{override}"):
        load_config(QUICKSTART, [*overrides, override])


@pytest.mark.parametrize(
    "option", ["matmul_dtype=float8", "chunk=0", "sub_centers=0", "filter_above=2.0"]
)
def test_bad_options_are_named(option: str) -> None:
    key, _, value = option.partition("=")
    with pytest.raises(ConfigError, match=rf"classifier\.{key}: .*{value}"):
        load_config(QUICKSTART, ["classifier={name: full}", f"classifier.{option}"])


def test_a_single_class_is_refused(stub: Stub) -> None:
    with pytest.raises(ValueError, match="1 classes"):
        full.build(backbone=stub(D), classes=1, head=cosface.build(), ranks=Ranks(), seed=0)


@pytest.mark.parametrize("build", [adaface.build, curricularface.build])
def test_head_averages_move_once_per_training_step(
    build: Callable[[], MarginHead], stub: Stub
) -> None:
    head = build()
    classifier = full.build(backbone=stub(D), classes=C, head=head, ranks=Ranks(), seed=3, chunk=4)
    once = build()
    embeddings, labels = batch()
    units, rows = F.normalize(embeddings.float()), F.normalize(classifier.weight)[labels]
    once.update_stats((units * rows).sum(1).detach(), embeddings.detach().float().norm(dim=1))
    classifier(stub(D), embeddings, labels).backward()
    classifier.eval()
    classifier(stub(D), embeddings, labels)
    for key, value in once.state_dict().items():
        torch.testing.assert_close(head.state_dict()[key], value)
        assert f"head.{key}" in classifier.state_dict()


def test_bfloat16_products_stay_close(stub: Stub) -> None:
    embeddings, labels = batch()
    results = []
    for matmul_dtype in ("float32", "bfloat16"):
        classifier = full.build(
            backbone=stub(D),
            classes=C,
            head=cosface.build(),
            ranks=Ranks(),
            seed=3,
            matmul_dtype=matmul_dtype,
        )
        loss = classifier(stub(D), embeddings, labels)
        results.append((loss, *torch.autograd.grad(loss, (embeddings, classifier.weight))))
    for one, two in zip(*results, strict=True):
        assert ((one - two).norm() / two.norm()).item() < 0.02


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_logits(autocast: torch.dtype, stub: Stub) -> None:
    classifier = full.build(
        backbone=stub(D), classes=C, head=cosface.build(), ranks=Ranks(), seed=3
    )
    embeddings, labels = batch()
    embeddings = embeddings.detach().float().to(autocast)
    expected = classifier(stub(D), embeddings.float(), labels)
    with torch.autocast("cpu", dtype=autocast):
        assert torch.equal(classifier(stub(D), embeddings, labels), expected)


def test_centers_start_as_published_and_by_seed(stub: Stub) -> None:
    one, two, other = (
        full.build(
            backbone=stub(64), classes=5000, head=cosface.build(), ranks=Ranks(), seed=seed
        ).weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.mean().item() == pytest.approx(0, abs=1e-4)
    assert one.std().item() == pytest.approx(0.01, rel=0.01)
