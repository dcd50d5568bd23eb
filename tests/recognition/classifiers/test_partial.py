"""Partial FC against the full loss on the sampled rows, and against torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from data.types import Batch
from recognition.classifiers import partial
from recognition.classifiers._sample import ClassSampler, sample_classes
from recognition.config import ConfigError
from recognition.distributed import Ranks
from recognition.heads import arcface, cosface
from recognition.parse import load_config

TAKEN = torch.tensor(True)

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


def sample_of(*labels: torch.Tensor, rate: float, step: int = 0) -> torch.Tensor:
    """The sample of a step whose micro-batches have these labels, as the loader draws it."""
    sampler = ClassSampler(C, rate, seed=4, rows=range(C))
    return torch.from_numpy(sampler(torch.cat(labels).numpy(), 0, step))


def test_at_rate_one_it_is_the_full_classifier(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=1.0, chunk=7)
    plain = nn.Parameter(classifier.weight.clone())
    optimizer = torch.optim.SGD([plain], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(20):
        embeddings, labels = batch(step)
        classifier.before_step(0.1)
        loss = classifier(stub(D), embeddings, labels, sample_of(labels, rate=1.0))
        loss.backward()
        classifier.after_step(TAKEN)
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
        index = sample_of(labels, rate=0.3, step=step)
        loss = classifier(stub(D), embeddings, labels, index)
        assert set(labels.tolist()) <= set(index.tolist())
        sizes.add(len(index))
        rows = weight[index].requires_grad_()
        expected = literal(embeddings, rows, torch.searchsorted(index, labels), cosface.build())
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(expected, rows)
        loss.backward()
        classifier.after_step(TAKEN)
        velocity[index] = 0.9 * velocity[index] + gradient + 0.1 * weight[index]
        weight[index] -= 0.2 * velocity[index]
        torch.testing.assert_close(classifier.weight, weight)
        others = torch.ones(C, dtype=torch.bool).index_fill(0, index, False)
        assert torch.equal(classifier.weight[others], weight[others])
        assert torch.equal(classifier.velocity[others], velocity[others])
        weight, velocity = classifier.weight.clone(), classifier.velocity.clone()
    assert sizes == {round(0.3 * C)}


def test_evaluation_and_skipped_steps_change_nothing(stub: Stub) -> None:
    classifier = build(stub, sample_rate=0.3)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    embeddings, labels = batch(0)
    sample = sample_of(labels, rate=0.3)
    classifier.eval()
    classifier(stub(D), embeddings, labels, sample).backward()
    classifier.after_step(TAKEN)
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key]), key
    classifier.train()
    classifier.before_step(0.1)
    classifier(stub(D), embeddings * torch.nan, labels, sample).backward()
    assert not classifier.own_gradients()[0].isfinite().all()
    classifier.after_step(torch.tensor(False))
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_step_without_a_sample_is_refused(stub: Stub) -> None:
    classifier = build(stub, sample_rate=0.3)
    classifier.before_step(0.1)
    with pytest.raises(ValueError, match="brings no sample"):
        classifier(stub(D), *batch(0))


def test_loss_scaling_and_accumulation_leave_the_step_as_it_is(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=0.5, accumulation=2, weight_decay=0.0)
    weight = classifier.weight.clone()
    gradient = torch.zeros_like(weight)
    classifier.before_step(0.1)
    index = sample_of(batch(0)[1], batch(1)[1], rate=0.5)
    for step in range(2):
        embeddings, labels = batch(step)
        loss = classifier(stub(D), embeddings, labels, None if step else index)
        (loss / 2 * 1024).backward()
        rows = weight[index].requires_grad_()
        expected = literal(embeddings, rows, torch.searchsorted(index, labels), cosface.build()) / 2
        gradient.index_add_(0, index, torch.autograd.grad(expected, rows)[0])
    classifier.after_step(TAKEN)
    torch.testing.assert_close(classifier.weight, weight - 0.1 * gradient)


def test_at_rate_one_its_adamw_is_torchs(stub: Stub, literal: Loss) -> None:
    classifier = build(stub, sample_rate=1.0, chunk=7, optimizer_name="adamw", weight_decay=0.1)
    plain = nn.Parameter(classifier.weight.clone())
    optimizer = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.1)
    for step in range(20):
        embeddings, labels = batch(step)
        classifier.before_step(0.01)
        classifier(stub(D), embeddings, labels, sample_of(labels, rate=1.0)).backward()
        classifier.after_step(TAKEN)
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
        index = sample_of(labels, rate=0.3, step=step)
        classifier(stub(D), embeddings, labels, index).backward()
        loss = literal(
            embeddings,
            torch.stack([rows[i] for i in index]),
            torch.searchsorted(index, labels),
            cosface.build(),
        )
        loss.backward()
        classifier.after_step(TAKEN)
        for row in index.tolist():
            optimizers[row].step()
            optimizers[row].zero_grad()
        torch.testing.assert_close(classifier.weight, torch.stack([row.detach() for row in rows]))
    assert len(set(classifier.times.tolist())) > 2


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.49, 0.51, 0.9])
def test_samples_are_uniform_and_hold_the_batch(rate: float) -> None:
    labels = np.array([3, 3, 17, 999])
    counts = np.zeros(1000)
    for seed in range(300):
        sampled = sample_classes(1000, rate, labels, np.random.default_rng(seed))
        assert len(sampled) == round(1000 * rate)
        assert (np.diff(sampled) > 0).all()
        counts[sampled] += 1
    assert (counts[[3, 17, 999]] == 300).all()
    others = np.delete(counts, labels)
    share = (1000 * rate - 3) / 997
    assert others.mean() == pytest.approx(300 * share)
    # binomial: draws are independent
    assert others.var() == pytest.approx(300 * share * (1 - share), rel=0.2)


def test_ranks_hold_the_parts_of_one_sample() -> None:
    labels = np.array([0, 5, 41, 60])
    whole = ClassSampler(C, 0.3, seed=1, rows=range(C))(labels, 2, 64)
    cuts = [range(20), range(20, 40), range(40, C)]
    parts = [ClassSampler(C, 0.3, seed=1, rows=rows)(labels, 2, 64) for rows in cuts]
    assert np.array_equal(np.concatenate(parts), whole)
    for part, rows in zip(parts, cuts, strict=True):
        assert all(number in rows for number in part)


def test_samples_differ_between_steps_epochs_and_seeds() -> None:
    def drawn(seed: int, *place: int) -> tuple[int, ...]:
        sampler = ClassSampler(C, 0.5, seed=seed, rows=range(C))
        return tuple(sampler(np.array([1]), *place).tolist())

    places = [(0, 0, 0), (0, 0, 8), (0, 1, 0), (1, 0, 0)]
    assert len({drawn(*place) for place in places}) == len(places)


class Set:
    """24 images of 12 identities that need no decoding; image 5 can't be read."""

    labels, num_classes = np.arange(24) // 2, 12

    def __len__(self) -> int:
        return 24

    def read(self, index: int) -> bytes:
        if index == 5:
            raise ValueError("broken")
        return _JPEG

    def describe(self, index: int) -> str:
        return f"image {index}"


_JPEG = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()


def test_the_loader_draws_one_sample_per_step_and_a_resume_the_same() -> None:
    config = load_config(
        QUICKSTART,
        [
            "classifier={name: partial, sample_rate: 0.5}",
            *("optim.accumulation=2", "optim.batch_size=4", "data.size=16"),
        ],
    )

    def epoch(
        rank: int = 0, world: int = 1, threads: int = 2, skip: int = 0, accumulation: int = 2
    ) -> list[Batch]:
        loader = partial.make_loader(
            Set(),
            config,
            batch_size=8 // accumulation // world,
            size=16,
            seed=config.run.seed,
            threads=threads,
            rank=rank,
            world=world,
            accumulation=accumulation,
        )
        loader.consumed = skip
        return list(loader)

    alone = epoch()
    assert [batch.sample is None for batch in alone] == [False, True] * 3
    for first, second in zip(alone[::2], alone[1::2], strict=True):
        assert first.sample is not None
        assert len(first.sample) >= 6
        assert set(first.labels.tolist() + second.labels.tolist()) <= set(first.sample.tolist())

    for again in (epoch(threads=0), [*alone[:2], *epoch(skip=8)]):
        for one, other in zip(alone, again, strict=True):
            assert torch.equal(one.labels, other.labels)
            assert (one.sample is None) == (other.sample is None)
            assert one.sample is None or torch.equal(one.sample, other.sample)  # type: ignore[arg-type]

    halves = [epoch(rank, 2) for rank in range(2)]
    for whole, *parts in zip(alone, *halves, strict=True):
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        if whole.sample is not None:
            assert torch.equal(torch.cat([part.sample for part in parts]), whole.sample)

    # Also where the same step is divided otherwise, as on a resume.
    for accumulation in (1, 2):
        halves = [epoch(rank, 2, skip=8, accumulation=accumulation) for rank in range(2)]
        for step in (1, 2):
            samples = [half[(step - 1) * accumulation].sample for half in halves]
            assert torch.equal(torch.cat(samples), alone[2 * step].sample)  # type: ignore[arg-type]


def test_a_batch_with_more_classes_than_the_rate_allows() -> None:
    sampled = sample_classes(100, 0.1, np.arange(50), np.random.default_rng(0))
    assert sampled.tolist() == list(range(50))


def test_a_lone_class_is_given_a_negative(stub: Stub) -> None:
    classifier = build(stub, sample_rate=0.001)
    embeddings, labels = batch(0)[0], torch.full((B,), 5)
    sample = sample_of(labels, rate=0.001)
    assert len(sample) == 2
    assert classifier(stub(D), embeddings, labels, sample).isfinite()


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
    sample = sample_of(labels, rate=0.3)
    loss = classifier(stub(D), embeddings, labels, sample)
    rows = classifier.weight.view(C, 3, D)[sample].flatten(0, 1)
    places = torch.searchsorted(sample, labels)
    expected = literal(embeddings, rows, places, arcface.build(), sub_centers=3)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
