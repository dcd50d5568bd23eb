"""The losses of a teacher against float64 references, without a run."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.types import Batch
from recognition.classifiers._margin_softmax import SoftmaxOptions
from recognition.config import TeacherConfig
from recognition.distributed import Ranks
from recognition.heads.cosface import build as cosface
from recognition.teacher import Teacher, TeacherCenters, fading

CPU = torch.device("cpu")


class _NoClassifier:
    """A classifier whose loss is the sum of the embeddings."""

    def __call__(self, backbone: Any, images: torch.Tensor, *_: object) -> torch.Tensor:
        found: torch.Tensor = backbone(images).sum()
        return found


def _slow_step(
    centers: list[np.ndarray], students: np.ndarray, given: np.ndarray, labels: list[int]
) -> None:
    """Move the centers as the text of recognition/teacher.py says, image by image."""
    before = [center.copy() for center in centers]
    for student, vector, label in zip(students, given, labels, strict=True):
        s, t, w = (v / np.linalg.norm(v) for v in (student, vector, before[label]))
        alpha = max(0.0, float(s @ t)) * max(0.0, float(w @ t))
        centers[label] += (1 - alpha) * (t - before[label]) / labels.count(label)


def _slow_losses(
    students: torch.Tensor, given: torch.Tensor, centers: torch.Tensor, labels: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 - cosine, and CosFace with scale 10 and margin 0.3, as means over the batch."""
    cosine = torch.stack(
        [1 - F.cosine_similarity(s, t, dim=0) for s, t in zip(students, given, strict=True)]
    )
    losses = []
    for student, label in zip(students, labels, strict=True):
        logits = [10 * F.cosine_similarity(student, center, dim=0) for center in centers]
        logits[label] = logits[label] - 3
        losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[label])
    return cosine.mean(), torch.stack(losses).mean()


@pytest.mark.parametrize("embedding", [5, 7], ids=["equal lengths", "another length"])
def test_both_losses_equal_a_slow_float64_reference(embedding: int) -> None:
    draw = torch.Generator().manual_seed(embedding)
    table = torch.randn(48, 5, generator=draw, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    options = SoftmaxOptions(cosface(margin=0.3, scale=10), chunk=2)
    held = TeacherCenters(range(4), 5, options=options, ranks=Ranks(), seed=1, device=CPU)
    projection = nn.Linear(embedding, 5, bias=False) if embedding != 5 else None
    torch.set_default_dtype(torch.float32)
    teacher = Teacher(
        TeacherConfig(vectors="x", cosine=2.0, centers=3.0, schedule="fade"),
        lambda images, indices: table[indices],
        digest="",
        projection=projection,
        centers=held,
        ranks=Ranks(),
        planned=1000,
    )
    centers = [row.numpy().copy() for row in held.weight]
    for step, place in enumerate((100, 700, 900)):
        labels = torch.randint(4, (9,), generator=draw)
        labels[1] = labels[0]  # two images of one class
        embeddings = torch.randn(9, embedding, generator=draw, dtype=torch.float64)
        indices = np.arange(9) + 9 * step
        ours, theirs = (embeddings.clone().requires_grad_() for _ in range(2))
        images = torch.zeros(9, 3, 2, 2)
        batch = Batch(images, labels, indices=indices)
        loss = teacher.loss(_NoClassifier(), lambda _, own=ours: own, images, batch, place)  # type: ignore[arg-type]

        mapped = theirs if projection is None else theirs @ projection.weight.T
        given, known = table[indices], labels.tolist()
        _slow_step(centers, mapped.detach().numpy(), given.numpy(), known)
        where = torch.from_numpy(np.stack(centers))
        cosine, margin = _slow_losses(mapped, given, where, known)
        factor = (1, 0.9, 0.3)[step]
        expected = theirs.sum() + factor * (2 * cosine + 3 * margin)

        assert torch.allclose(held.weight, where, rtol=0, atol=1e-12)
        assert torch.allclose(loss, expected, rtol=1e-12)
        loss.backward()
        expected.backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12)
        assert teacher.log()["teacher/cosine"] == pytest.approx(1 - cosine.item())
        teacher.after_step(torch.tensor(True))


def test_an_image_without_a_vector_teaches_nothing() -> None:
    options = SoftmaxOptions(cosface(), chunk=9)
    held = TeacherCenters(range(3), 4, options=options, ranks=Ranks(), seed=1, device=CPU)
    before = held.weight.clone()
    given = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    held.loss(torch.ones(2, 4), given, torch.tensor([0, 1]), None)
    assert not torch.equal(held.weight[0], before[0])
    assert torch.equal(held.weight[1:], before[1:])


@pytest.mark.parametrize(("share", "factor"), [(0, 1), (2 / 3, 1), (5 / 6, 0.5), (1, 0), (1.1, 0)])
def test_the_weight_falls_in_the_last_third(share: float, factor: float) -> None:
    assert fading(share) == pytest.approx(factor)


def test_the_centers_are_divided_anew_for_other_ranks() -> None:
    options = SoftmaxOptions(cosface(), chunk=9)

    def of(rows: range) -> Teacher:
        held = TeacherCenters(rows, 4, options=options, ranks=Ranks(), seed=3, device=CPU)
        config = TeacherConfig(vectors="x")
        return Teacher(
            config,
            lambda images, indices: images,
            digest="",
            projection=None,
            centers=held,
            ranks=Ranks(),
            planned=1,
        )

    saved = [of(rows).state_dict() for rows in (range(3), range(3, 7))]
    third = of(range(4, 6))
    expected = torch.cat([one["centers"] for one in saved])[4:6] * 2
    for one in saved:
        one["centers"] = one["centers"] * 2
    third.load_state_dict(saved, whole=True)
    assert third.centers is not None
    assert torch.equal(third.centers.weight, expected)
    with pytest.raises(ValueError, match="3 class centers were saved"):
        third.load_state_dict(saved[:1], whole=False)
