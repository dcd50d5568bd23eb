"""Semi-siamese training against the published procedure, image by image in float64."""

import copy
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.parts import find_part, part_names
from recognition.classifiers.semi_siamese import make_loader
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead
from recognition.parse import load_config
from tests.recognition.classifiers.semi_siamese_worker import (
    CLASSES,
    DECAY,
    PAIRS,
    RATE,
    SCALE,
    TAKEN,
    VARIANTS,
    Net,
    batches,
    flat,
    make,
    train,
)

ROOT = Path(__file__).parents[3]
Result = dict[str, torch.Tensor]
Target = Callable[[torch.Tensor], torch.Tensor]
TARGETS: dict[str, Target] = {
    "cosface": lambda cos: cos - 0.4,
    "arcface": lambda cos: (cos.acos() + 0.5).cos(),
}


class Reference:
    """SST one image at a time: a list of (feature, identity), from the oldest to the newest."""

    def __init__(self, net: nn.Module, queue: list[torch.Tensor], target: Target, agents: int):
        self.queue: deque[tuple[torch.Tensor, int]] = deque((feature, -1) for feature in queue)
        self.agents = deque(copy.deepcopy(net) for _ in range(agents))
        self.target = target
        self.evicted = self.repeated = 0

    def embed(self, net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
        return [F.normalize(net(image[None]))[0] for image in images]

    def one_way(
        self, probes: list[torch.Tensor], features: list[torch.Tensor], people: list[int]
    ) -> tuple[torch.Tensor, deque[tuple[torch.Tensor, int]]]:
        queue = self.queue.copy()
        for feature, person in zip(features, people, strict=True):
            queue.popleft()
            queue.append((feature, person))
        losses = []
        for probe, feature, person in zip(probes, features, people, strict=True):
            others = [other for other, owner in queue if owner != person]
            self.repeated += len(queue) - len(others) > 1
            cosines = torch.stack([self.target(probe @ feature), *(probe @ o for o in others)])
            losses.append(F.cross_entropy(SCALE * cosines[None], torch.tensor([0])))
        return torch.stack(losses).mean(), queue

    def loss(
        self, net: nn.Module, images: torch.Tensor, people: list[int], *, swap: bool
    ) -> torch.Tensor:
        with torch.no_grad():
            first, second = (self.embed(self.agents[0], half) for half in images)
        loss, queue = self.one_way(self.embed(net, images[0]), second, people)
        if swap:
            loss = (loss + self.one_way(self.embed(net, images[1]), first, people)[0]) / 2
        self.evicted += sum(owner >= 0 for _, owner in list(self.queue)[: len(people)])
        self.queue = queue
        return loss

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        agent = self.agents.popleft()
        for mine, theirs in zip(agent.parameters(), net.parameters(), strict=True):
            mine.copy_(DECAY * mine + (1 - DECAY) * theirs)
        self.agents.append(agent)


class Labeled:
    """A set of equal images with these labels."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = np.array(labels, np.int64)
        self.num_classes = len({*labels})

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1])

    def describe(self, index: int) -> str:
        return f"image {index}"


def published(variant: str) -> tuple[Result, Reference]:
    """What `train` returns, by the reference."""
    head, steps, options = VARIANTS[variant]
    net = Net()
    start = list(make(net, Ranks(), head).queue.features)
    reference = Reference(net, start, TARGETS[head], options.get("agents", 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    losses, gradients = [], []
    for images, labels in batches(steps):
        loss = reference.loss(net, images, labels.tolist(), swap=options.get("swap", True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reference.follow(net)
        losses.append(loss.detach())
        gradients.append(flat(net, gradient=True))
    result = {
        "losses": torch.stack(losses),
        "gradients": torch.stack(gradients),
        "net": flat(net),
        "agents": torch.stack([flat(agent) for agent in reference.agents]),
    }
    return result, reference


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Result]]]:
    """What each rank of 1, 2 and 3 processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = str(Path(__file__).with_name("semi_siamese_worker.py"))
    ports = [free_port() for _ in range(2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, worker, folder, str(rank), *ports], env=environment)
        for rank in range(3)
    ]
    try:
        alone = {name: train(name, Ranks()) for name in VARIANTS}
        assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    saved = {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in (2, 3)
    }
    return {1: [alone], **saved}


@pytest.mark.parametrize("variant", ["SST", "SST, one way", "MASST"])
def test_training_equals_the_published_procedure(
    variant: str, of_ranks: dict[int, list[dict[str, Result]]]
) -> None:
    """Loss and gradient of each step, on 1, 2 and 3 processes; for SST and MASST over 200 steps."""
    expected, reference = published(variant)
    assert reference.evicted > 300
    assert reference.repeated > 100  # probes whose identity is in the queue more than once
    features = torch.stack([feature for feature, _ in reference.queue])
    owners = [owner for _, owner in reference.queue]
    for world, ranks in of_ranks.items():
        for rank in ranks:
            found = rank[variant]
            for name, value in expected.items():
                torch.testing.assert_close(
                    found[name], value, rtol=0, atol=1e-9, msg=f"{name}, {world} ranks"
                )
            oldest_first = -int(found["cursor"])
            queue = found["features"].roll(oldest_first, 0)
            torch.testing.assert_close(queue, features, rtol=0, atol=1e-9)
            assert found["identities"].roll(oldest_first).tolist() == owners


@pytest.mark.parametrize("head", part_names("recognition.heads"))
def test_every_head_computes_on_several_ranks_what_it_does_on_one(
    head: str, of_ranks: dict[int, list[dict[str, Result]]]
) -> None:
    """Heads with random margins or running averages see the probes of all ranks."""
    alone = of_ranks[1][0][head]
    for world in (2, 3):
        for rank in of_ranks[world]:
            for name, value in alone.items():
                torch.testing.assert_close(rank[head][name], value, rtol=1e-9, atol=1e-9)


def dense_loss(
    probes: torch.Tensor, features: torch.Tensor, others: torch.Tensor, head: MarginHead
) -> torch.Tensor:
    """The released form: a matrix product, a margin at each probe's own column, cross entropy."""
    norms, index = probes.norm(dim=1), torch.arange(len(probes))
    cos = F.normalize(probes) @ torch.cat([features, others]).T
    own = cos[index, index]
    head.update_stats(own.detach(), norms.detach())
    logits = head.negatives(cos, own.detach()[:, None]).clone()
    logits[index, index] = head.target(own, norms)
    loss = F.cross_entropy(head.scale * logits, index)
    penalty = head.penalty(norms)
    return loss if penalty is None else loss + penalty.mean()


@pytest.mark.parametrize("size", [PAIRS, PAIRS + 5])
@pytest.mark.parametrize("name", part_names("recognition.heads"))
def test_every_head_equals_its_dense_form(name: str, size: int) -> None:
    """One step, one way, with identities that the queue does not have, or replaces as a whole."""
    nets = [Net(), Net()]
    ours = make(nets[0], Ranks(), name, swap=False, size=size)
    head = find_part("recognition.heads", name).build(scale=SCALE).double()
    [(images, _)] = batches(1)
    images *= 20  # embeddings of several lengths
    labels = torch.arange(PAIRS)
    with torch.no_grad():
        features = F.normalize(nets[1](images[1]))
    others = ours.queue.features[PAIRS:].clone()
    losses = [
        ours(nets[0], images.flatten(0, 1), labels.repeat(2)),
        dense_loss(nets[1](images[0]), features, others, head),
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)
    for loss in losses:
        loss.backward()
    gradients = [flat(net, gradient=True) for net in nets]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(ours.head.buffers(), head.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def a_step(
    net: nn.Module,
    classifier: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    taken: bool = True,
    micro: int = 1,
) -> float:
    """One step of SGD, or a skipped one. Returns its last loss."""
    classifier.before_step(RATE)
    for part, people in zip(images.chunk(micro, 1), labels.chunk(micro), strict=True):
        loss = classifier(net, part.flatten(0, 1), people.repeat(2))
        (loss / micro).backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if taken and parameter.grad is not None:
                parameter.sub_(RATE * parameter.grad)
            parameter.grad = None
    classifier.after_step(torch.tensor(taken))
    return float(loss.detach())


@pytest.mark.parametrize("micro", [1, 3])
def test_a_skipped_step_passes_the_turn_on_and_changes_nothing_else(micro: int) -> None:
    net = Net()
    classifier = make(net, Ranks(), "cosface", agents=2)
    steps = list(batches(8))
    for images, labels in steps[:5]:
        a_step(net, classifier, images, labels, micro=micro)
    queue = copy.deepcopy(classifier.queue.state_dict())
    agents = [flat(agent) for agent in classifier.agents]
    assert not torch.equal(*agents)
    a_step(net, classifier, *steps[5], taken=False, micro=micro)
    assert all(torch.equal(queue[name], x) for name, x in classifier.queue.state_dict().items())
    assert torch.equal(flat(classifier.agents[0]), agents[1])
    assert torch.equal(flat(classifier.agents[1]), agents[0])


def test_accumulated_steps_equal_the_published_procedure() -> None:
    """The queue changes behind each micro-batch, and the agents behind the step."""
    ours, theirs = Net(), Net()
    classifier = make(ours, Ranks(), "cosface", agents=2)
    reference = Reference(theirs, [*classifier.queue.features.clone()], TARGETS["cosface"], 2)
    for images, labels in batches(25):
        loss = a_step(ours, classifier, images, labels, micro=3)
        parts = zip(images.chunk(3, 1), labels.chunk(3), strict=True)
        losses = [reference.loss(theirs, part, who.tolist(), swap=True) for part, who in parts]
        torch.stack(losses).mean().backward()
        with torch.no_grad():
            for parameter in theirs.parameters():
                assert parameter.grad is not None
                parameter.sub_(RATE * parameter.grad)
                parameter.grad = None
        reference.follow(theirs)
        assert loss == pytest.approx(losses[-1].item(), abs=1e-9)
    agents = [(flat(a), flat(b)) for a, b in zip(classifier.agents, reference.agents, strict=True)]
    for found, expected in [(flat(ours), flat(theirs)), *agents]:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("choice", "people", "told"),
    [
        ("twice", {0, 1, 2, 3}, "2 of 4 identities have one image, which is used as both images"),
        ("left_out", {0, 2}, "2 of 4 identities have one image, and are left out"),
    ],
)
def test_people_with_one_image_are_told_and_used_by_option(
    choice: str, people: set[int], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    faces = Labeled([0, 0, 1, 2, 2, 2, 2, 3])
    option = f"classifier={{name: semi_siamese, single_images: {choice}}}"
    config = load_config(ROOT / "configs/quickstart.yaml", [option])
    loader = make_loader(faces, config, batch_size=4, size=8, seed=0, threads=0)
    assert told in caplog.text
    came: set[int] = set()
    for _ in range(3):
        for batch in loader:
            first, second = batch.labels.chunk(2)
            assert torch.equal(first, second)
            came |= {*first.tolist()}
    assert came == people
    if choice == "left_out":
        with pytest.raises(ValueError, match="the set has only 2 with two images; lower optim"):
            make_loader(faces, config, batch_size=6, size=8, seed=0, threads=0)


def test_with_a_skipped_step_less_sst_computes_the_same() -> None:
    runs = []
    for skips in (False, True):
        net = Net()
        classifier = make(net, Ranks(), "cosface")
        for number, (images, labels) in enumerate(batches(6)):
            if number == 3 and not skips:
                continue
            a_step(net, classifier, images, labels, taken=number != 3)
        runs.append([flat(net), flat(classifier.agents[0]), classifier.queue.features])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_resume_continues_to_the_same_numbers() -> None:
    """In the middle of the agents' round."""
    net, steps = Net(), list(batches(8))
    classifier = make(net, Ranks(), "curricularface", agents=3)
    for images, labels in steps[:4]:
        a_step(net, classifier, images, labels)
    saved = copy.deepcopy((net.state_dict(), classifier.state_dict()))
    again = Net()
    resumed = make(again, Ranks(), "curricularface", agents=3)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for images, labels in steps[4:]:
        losses = [a_step(n, c, images, labels) for n, c in ((net, classifier), (again, resumed))]
        assert losses[0] == losses[1]
    state = classifier.state_dict()
    assert all(torch.equal(state[name], x) for name, x in resumed.state_dict().items())


def test_evaluation_leaves_the_queue_alone() -> None:
    net = Net()
    classifier = make(net, Ranks(), "cosface")
    before = copy.deepcopy(classifier.state_dict())
    classifier.eval()
    [(images, labels)] = batches(1)
    classifier(net, images.flatten(0, 1), labels.repeat(2))
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(precision: torch.dtype) -> None:
    nets = [Net().float(), Net().float()]
    classifiers = [make(net, Ranks(), "cosface", agents=2).float() for net in nets]
    for images, labels in batches(4):
        losses = []
        for net, classifier, enabled in zip(nets, classifiers, (False, True), strict=True):
            with torch.autocast("cpu", dtype=precision, enabled=enabled):
                losses.append(a_step(net, classifier, images.float(), labels))
        assert losses[1] == pytest.approx(losses[0], rel=0.03, abs=0.03)
    assert F.cosine_similarity(flat(nets[0]), flat(nets[1]), 0) > 0.999


def test_a_feature_that_is_not_finite_does_not_stay() -> None:
    net = Net()
    classifier = make(net, Ranks(), "cosface")
    [(images, labels), later] = batches(2)
    images[1, 2] = torch.nan
    classifier(net, images.flatten(0, 1), labels.repeat(2))
    assert classifier.queue.features.isfinite().all()
    assert classifier(net, later[0].flatten(0, 1), later[1].repeat(2)).isfinite()


def test_the_agents_see_no_dropout_and_their_batch_norms_see_the_batch() -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Dropout(0.5)
    )
    net.embedding = 8  # type: ignore[assignment]
    net[3].eval()  # as of a frozen one
    classifier = make(net.double(), Ranks(), "cosface", agents=2)
    for agent in classifier.agents:
        modes = [module.training for module in agent.children()]
        assert modes == [False, False, True, False, False]
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    [(images, labels)] = batches(1)
    a_step(net, classifier, images, labels)
    for name, value in net.state_dict().items():
        moved = value if "num_batches" in name else DECAY * before[name] + (1 - DECAY) * value
        torch.testing.assert_close(classifier.agents[-1].state_dict()[name], moved)
        torch.testing.assert_close(classifier.agents[0].state_dict()[name], before[name])


def test_no_operation_waits_for_the_device() -> None:
    """On the meta device, any operation that needs a value on the host raises an error."""
    queue = make(Net(), Ranks(), "cosface").queue.to("meta")
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    changes = queue.push(labels, torch.zeros(4, 8, dtype=torch.float64, device="meta"))
    queue.undo_unless(TAKEN.to("meta"), changes)
    assert queue.all_but(queue.next_places(4)).shape == (queue.size,)


def test_the_variants_draw_some_identities_twice_in_a_step() -> None:
    assert any(len(labels.unique()) < PAIRS for _, labels in batches(200))
    assert max(int(labels.max()) for _, labels in batches(200)) == CLASSES - 1
