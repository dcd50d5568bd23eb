"""Partial FC against the full loss on the sampled rows, and against torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recognition.classifiers import partial
from recognition.classifiers.partial import sample_classes
from recognition.config import ConfigError
from recognition.distributed import Ranks
from recognition.heads import arcface, cosface
from recognition.parse import load_config

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
B, C, D = 8, 61, 16
Stub = Callable[[int], nn.Module]
Loss = Callable[..., torch.Tensor]


def batch(seed: int, classes: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(B, D, generator=draw).double().requires_grad_(), torch.randint(
        classes, (B,), generator=draw
    )


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(((one - two).norm() / two.norm()).item())


def build(stub: Stub, **options: Any) -> partial.PartialFC:
    return partial.build(
        backbone=stub(D), classes=C, head=cosface.build(), ranks=Ranks(), seed=4, **options
    ).double()


def test_at_rate_one_it_is_the_full_classifier(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=1.0, chunk=7)
    plain = nn.Parameter(classifier.weight.clone())
    optimizer = torch.optim.SGD([plain], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(20):
        embeddings, labels = batch(step)
        classifier.before_step(0.1)
        loss = classifier(stub(D), embeddings, labels)
        loss.backward()
        classifier.after_step()
        optimizer.zero_grad()
        expected = literal(embeddings, plain, labels, cosface.build())
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    assert relative(classifier.weight, plain) < 1e-9


def test_only_sampled_rows_learn_decay_and_drift(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=0.3, weight_decay=0.1)
    weight, velocity = classifier.weight.clone(), classifier.velocity.clone()
    sizes = set()
    for step in range(6):
        embeddings, labels = batch(step)
        classifier.before_step(0.2)
        loss = classifier(stub(D), embeddings, labels)
        (sample,) = classifier._samples
        index = sample.index
        assert set(labels.tolist()) <= set(index.tolist())
        sizes.add(len(index))
        rows = weight[index].requires_grad_()
        expected = literal(embeddings, rows, torch.searchsorted(index, labels), cosface.build())
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(expected, rows)
        loss.backward()
        classifier.after_step()
        velocity[index] = 0.9 * velocity[index] + gradient + 0.1 * weight[index]
        weight[index] -= 0.2 * velocity[index]
        torch.testing.assert_close(classifier.weight, weight)
        others = torch.ones(C, dtype=torch.bool).index_fill(0, index, False)
        assert torch.equal(classifier.weight[others], weight[others])
        assert torch.equal(classifier.velocity[others], velocity[others])
        weight, velocity = classifier.weight.clone(), classifier.velocity.clone()
    assert sizes == {round(0.3 * C)}


def test_a_resumed_run_continues_its_samples(stub: Stub) -> None:
    def steps(classifier: partial.PartialFC, first: int, last: int) -> None:
        for step in range(first, last):
            embeddings, labels = batch(step)
            classifier.before_step(0.1)
            classifier(stub(D), embeddings, labels).backward()
            classifier.after_step()

    whole, begun, resumed = (
        build(stub, sample_rate=0.3, momentum_dtype="float32") for _ in range(3)
    )
    steps(whole, 0, 6)
    steps(begun, 0, 3)
    resumed.load_state_dict(begun.state_dict())
    steps(resumed, 3, 6)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_evaluation_and_skipped_steps_change_nothing(stub: Stub) -> None:
    classifier = build(stub, sample_rate=0.3)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    embeddings, labels = batch(0)
    classifier.eval()
    classifier(stub(D), embeddings, labels).backward()
    classifier.after_step()
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key]), key
    classifier.train()
    classifier.before_step(0.1)
    # A GradScaler may skip the optimizer step. Then nobody calls after_step.
    classifier(stub(D), embeddings, labels).backward()
    classifier.before_step(0.1)
    classifier.after_step()
    assert torch.equal(classifier.weight, before["weight"])


def test_loss_scaling_and_accumulation_leave_the_step_as_it_is(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=0.5, accumulation=2, weight_decay=0.0)
    weight = classifier.weight.clone()
    gradient = torch.zeros_like(weight)
    classifier.before_step(0.1)
    for step in range(2):
        embeddings, labels = batch(step)
        loss = classifier(stub(D), embeddings, labels)
        (loss / 2 * 1024).backward()
        index = classifier._samples[-1].index
        rows = weight[index].requires_grad_()
        expected = literal(embeddings, rows, torch.searchsorted(index, labels), cosface.build()) / 2
        gradient.index_add_(0, index, torch.autograd.grad(expected, rows)[0])
    classifier.after_step()
    torch.testing.assert_close(classifier.weight, weight - 0.1 * gradient)


def test_at_rate_one_its_adamw_is_torchs(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=1.0, chunk=7, optimizer_name="adamw", weight_decay=0.1)
    plain = nn.Parameter(classifier.weight.clone())
    optimizer = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.1)
    for step in range(20):
        embeddings, labels = batch(step)
        classifier.before_step(0.01)
        classifier(stub(D), embeddings, labels).backward()
        classifier.after_step()
        optimizer.zero_grad()
        literal(embeddings, plain, labels, cosface.build()).backward()
        optimizer.step()
    assert relative(classifier.weight, plain) < 1e-9


def test_a_row_gets_the_adamw_steps_of_its_samples_alone(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=0.3, optimizer_name="adamw", weight_decay=0.1)
    rows = [nn.Parameter(row.clone()) for row in classifier.weight]
    optimizers = [torch.optim.AdamW([row], lr=0.01, weight_decay=0.1) for row in rows]
    for step in range(6):
        embeddings, labels = batch(step)
        classifier.before_step(0.01)
        classifier(stub(D), embeddings, labels).backward()
        index = classifier._samples[0].index
        loss = literal(
            embeddings,
            torch.stack([rows[i] for i in index]),
            torch.searchsorted(index, labels),
            cosface.build(),
        )
        loss.backward()
        classifier.after_step()
        for row in index.tolist():
            optimizers[row].step()
            optimizers[row].zero_grad()
        torch.testing.assert_close(classifier.weight, torch.stack([row.detach() for row in rows]))
    assert len(set(classifier.times.tolist())) > 2


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.49, 0.51, 0.9])
def test_samples_are_uniform_and_hold_the_batch(rate: float) -> None:
    labels = torch.tensor([3, 3, 17, 900])
    counts = torch.zeros(1000)
    for seed in range(300):
        sampled = sample_classes(1000, rate, labels, torch.Generator().manual_seed(seed))
        assert len(sampled) == round(1000 * rate)
        assert (sampled.diff() > 0).all()
        counts[sampled] += 1
    assert (counts[[3, 17, 900]] == 300).all()
    others = counts[torch.ones(1000, dtype=torch.bool).index_fill(0, labels, False)]
    share = (1000 * rate - 3) / 997
    assert others.mean().item() == pytest.approx(300 * share)
    # binomial: draws are independent
    assert others.var().item() == pytest.approx(300 * share * (1 - share), rel=0.2)


def test_a_batch_with_more_classes_than_the_rate_allows() -> None:
    labels = torch.arange(50)
    sampled = sample_classes(100, 0.1, labels, torch.Generator().manual_seed(0))
    assert sampled.tolist() == list(range(50))


def test_a_lone_class_is_given_a_negative(stub: Stub) -> None:
    classifier = build(stub, sample_rate=0.001)
    embeddings, _ = batch(0)
    assert classifier(stub(D), embeddings, torch.full((B,), 5)).isfinite()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_bad_sample_rate_is_named(share: float) -> None:
    with pytest.raises(ConfigError, match=rf"classifier\.sample_rate: .*{share}"):
        load_config(QUICKSTART, ["classifier={name: partial}", f"classifier.sample_rate={share}"])


def test_sub_centers_of_a_sampled_class_come_together(stub: Stub, literal: Loss) -> None:
    classifier = partial.build(
        backbone=stub(D),
        classes=C,
        head=arcface.build(),
        ranks=Ranks(),
        seed=4,
        sample_rate=0.3,
        sub_centers=3,
    ).double()
    embeddings, labels = batch(1)
    loss = classifier(stub(D), embeddings, labels)
    index = classifier._samples[0].index
    assert torch.equal(index.view(-1, 3) % 3, torch.arange(3).expand(len(index) // 3, 3))
    places = torch.searchsorted(index[::3] // 3, labels)
    expected = literal(embeddings, classifier.weight[index], places, arcface.build(), sub_centers=3)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
