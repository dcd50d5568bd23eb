"""The class pool classifier against the published procedure, sample by sample in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recognition.classifiers._gallery import gallery_columns
from recognition.classifiers.class_pool import ClassPoolClassifier, build
from recognition.distributed import Ranks
from recognition.heads import arcface, cosface
from recognition.heads._margin import MarginHead
from tests.recognition.classifiers.published_pool import Published

TAKEN = torch.tensor(True)

CLASSES, PIXELS, DEPTH = 40, 6, 8
HEADS: dict[str, tuple[Callable[[], MarginHead], Callable[[torch.Tensor], torch.Tensor]]] = {
    "cosface": (lambda: cosface.build(margin=0.4, scale=32.0), lambda cos: cos - 0.4),
    "arcface": (
        lambda: arcface.build(margin=0.5, scale=32.0),
        lambda cos: torch.where(
            cos > math.cos(math.pi - 0.5), (cos.acos() + 0.5).cos(), cos - 0.5 * math.sin(0.5)
        ),
    ),
}


class Net(nn.Module):
    embedding = DEPTH

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * PIXELS**2, 16), nn.PReLU(), nn.Linear(16, DEPTH)
        )
        self.register_buffer("offset", torch.linspace(-1, 1, DEPTH))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.layers(images) + self.offset
        return embeddings


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def batch(
    generator: torch.Generator, size: int = 12, classes: int = CLASSES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose halves share a third of their identities; the other identities are random."""
    shared = torch.randint(classes, (size // 3,), generator=generator)
    others = torch.randint(classes, (2, size // 2 - size // 3), generator=generator)
    images = torch.randn(size, 3, PIXELS, PIXELS, generator=generator, dtype=torch.float64)
    return images, torch.cat([shared, others[0], shared, others[1]])


class Reference:
    """F²C step by step: dictionaries, copies for a rollback, dense matrices of filled columns."""

    def __init__(
        self,
        net: nn.Module,
        size: int,
        target: Callable[..., torch.Tensor],
        *,
        hardest: bool,
        ema_decay: float,
    ) -> None:
        self.gallery, self.pool, self.target = copy.deepcopy(net), Published(size), target
        self.hardest = min(max(int(0.0002 * size), 3), 10) if hardest else 0
        self.ema_decay = ema_decay

    def follow(self, net: nn.Module) -> None:
        for mine, theirs in zip(
            self.gallery.state_dict().values(), net.state_dict().values(), strict=True
        ):
            mine.copy_(self.ema_decay * mine + (1 - self.ema_decay) * theirs)

    def loss_against(
        self, probes: torch.Tensor, labels: list[int], pool: Published, renewed: set[int]
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for second in (False, True):
            columns = sorted(pool.column.values())
            matrix = torch.stack([pool.slots[int(second and c in renewed), c] for c in columns])
            inside, outside = [], []
            for probe, label in zip(probes, labels, strict=True):
                cos = matrix @ probe
                if label in pool.column:
                    own = columns.index(pool.column[label])
                    logits = (
                        torch.cat([cos[:own], self.target(cos[own])[None], cos[own + 1 :]]) * 32.0
                    )
                    inside.append(F.cross_entropy(logits[None], torch.tensor([own])))
                else:
                    pushing = cos.sort(descending=True).values[: self.hardest or None]
                    outside.append(pushing.clamp(min=0).mean())
            total = total + sum(inside) / max(1, len(inside)) + sum(outside) / max(1, len(outside))
        return total

    def step(
        self, net: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, swap: bool
    ) -> torch.Tensor:
        x, y = images.chunk(2)
        ids = [part.tolist() for part in labels.chunk(2)]
        with torch.no_grad():
            features = [list(F.normalize(self.gallery(part))) for part in (x, y)]
        tried = copy.deepcopy(self.pool)
        renewed = tried.batch(ids[1], features[1], touch_first=True)
        loss = self.loss_against(F.normalize(net(x)), ids[0], tried, renewed)
        if not swap:
            self.pool = tried
            return loss
        renewed = self.pool.batch(ids[0], features[0], touch_first=True)
        return loss + self.loss_against(F.normalize(net(y)), ids[1], self.pool, renewed)


def make(
    net: nn.Module,
    *,
    size: float = 13,
    batch_size: int = 12,
    head: str = "cosface",
    **options: object,
) -> ClassPoolClassifier:
    return build(
        backbone=net,
        classes=CLASSES,
        head=HEADS[head][0](),
        ranks=Ranks(),
        batch_size=batch_size,
        size=size,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("head", ["cosface", "arcface"])
@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("outside", ["hardest", "all"])
def test_training_equals_the_published_procedure(head: str, swap: bool, outside: str) -> None:
    torch.manual_seed(0)
    nets = [Net().double(), Net().double()]
    nets[1].load_state_dict(nets[0].state_dict())
    ours = make(nets[0], head=head, swap=swap, outside=outside, ema_decay=0.9, chunk=5).double()
    reference = Reference(nets[1], 13, HEADS[head][1], hardest=outside == "hardest", ema_decay=0.9)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05) for net in nets]
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        images, labels = batch(generator)
        ours.before_step(0.05)
        with torch.no_grad():
            reference.follow(nets[1])
        losses = [ours(nets[0], images, labels), reference.step(nets[1], images, labels, swap=swap)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ours.after_step(TAKEN)
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        order = [int(i) for i in ours.pool.identities[ours.pool.stamps.argsort()] if i >= 0]
        assert order == reference.pool.order
        for (slot, column), feature in reference.pool.slots.items():
            torch.testing.assert_close(
                ours.pool.features[slot, column], feature, rtol=1e-8, atol=1e-8
            )
    assert len(reference.pool.evicted) > 5


def test_evaluation_leaves_the_pool_alone() -> None:
    net = Net().double()
    classifier = make(net).double()
    before = copy.deepcopy(classifier.state_dict())
    classifier.eval()
    classifier(net, *batch(torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())


def test_empty_columns_do_not_count_in_the_first_batch() -> None:
    """One identity in an empty pool has no negative: the loss is log 1, and nothing moves."""
    net = Net().double()
    classifier = make(net, swap=False).double()
    images, _ = batch(torch.Generator().manual_seed(0))
    loss = classifier(net, images, torch.full((12,), 3))
    loss.backward()
    assert loss == 0
    assert all(torch.equal(gradient_of(p), torch.zeros_like(p)) for p in net.parameters())


def test_gallery_follows_parameters_and_buffers_and_is_never_trained() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * PIXELS**2, DEPTH), nn.BatchNorm1d(DEPTH))
    net.embedding = DEPTH  # type: ignore[assignment]
    classifier = make(net, ema_decay=0.75)
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    expected = {key: value.clone().float() for key, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        classifier.before_step(0.1)
        images, labels = batch(generator)
        classifier(net, images.float(), labels).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(0.1 * gradient_of(parameter))
                parameter.grad = None
        classifier.after_step(TAKEN)
        for key, value in net.state_dict().items():
            expected[key] = value if "num_batches" in key else 0.75 * expected[key] + 0.25 * value
        for key, value in classifier.gallery.state_dict().items():
            torch.testing.assert_close(value, expected[key].to(value.dtype), rtol=1e-5, atol=1e-6)
        expected = {key: value.clone() for key, value in expected.items()}


def test_no_gradient_goes_into_the_pool_even_of_a_backbone_that_returns_its_input() -> None:
    class Nothing(nn.Linear):
        embedding = DEPTH

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    net = Nothing(1, 1)
    classifier = make(net)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        embeddings = torch.randn(12, DEPTH, generator=generator, requires_grad=True)
        classifier(net, embeddings, batch(generator)[1]).backward()
        assert not any(buffer.requires_grad for buffer in classifier.buffers())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(precision: torch.dtype) -> None:
    """Under autocast, with two micro-batches per step."""
    torch.manual_seed(0)
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    classifiers = [make(net) for net in nets]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for classifier in classifiers:
            classifier.before_step(0.1)
        for _ in range(2):
            images, labels = batch(generator)
            losses = []
            for net, classifier, enabled in zip(nets, classifiers, (False, True), strict=True):
                with torch.autocast("cpu", dtype=precision, enabled=enabled):
                    losses.append(classifier(net, images.float(), labels) / 2)
                losses[-1].backward()
            assert losses[1].dtype == torch.float32
            torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0.03)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert F.cosine_similarity(gradient_of(a).flatten(), gradient_of(b).flatten(), 0) > 0.99


def test_a_feature_that_is_not_finite_does_not_stay() -> None:
    net = Net()
    classifier = make(net)
    generator = torch.Generator().manual_seed(0)
    images, labels = batch(generator)
    images[3] = torch.nan
    classifier(net, images.float(), labels)
    assert classifier.pool.features.isfinite().all()
    assert classifier(
        net, *(t.float() if t.is_floating_point() else t for t in batch(generator))
    ).isfinite()


def test_resume_continues_to_the_same_numbers() -> None:
    def start() -> tuple[Net, ClassPoolClassifier]:
        torch.manual_seed(0)
        net = Net()
        return net, make(net)

    def train(
        net: Net, classifier: ClassPoolClassifier, generator: torch.Generator, steps: int
    ) -> torch.Tensor:
        losses = []
        for _ in range(steps):
            images, labels = batch(generator)
            classifier.before_step(0.1)
            losses.append(classifier(net, images.float(), labels))
            losses[-1].backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.sub_(0.1 * gradient_of(parameter))
                    parameter.grad = None
            classifier.after_step(TAKEN)
        return torch.stack(losses).detach()

    net, classifier = start()
    generator = torch.Generator().manual_seed(5)
    train(net, classifier, generator, 5)
    saved, place = copy.deepcopy((net.state_dict(), classifier.state_dict())), generator.get_state()
    whole = train(net, classifier, generator, 5)
    again, resumed = start()
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    generator.set_state(place)
    assert torch.equal(train(again, resumed, generator, 5), whole)
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize(
    ("size", "classes", "needed", "columns"),
    [(0.1, 617970, 192, 61797), (430, 4300, 96, 430), (1.0, 20, 60, 20)],
)
def test_size_is_a_share_or_a_number(size: float, classes: int, needed: int, columns: int) -> None:
    assert gallery_columns(size, classes, needed=needed) == columns


@pytest.mark.parametrize(
    ("size", "message"),
    [
        *[(size, "size that fits is 96") for size in (0.01, 95)],
        *[(size, "expected a share") for size in (2.5, 5000, math.nan, math.inf, 0, -1)],
    ],
)
def test_a_pool_that_a_batch_may_overflow_is_refused(size: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gallery_columns(size, 4300, needed=96)
