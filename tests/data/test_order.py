"""What the orders of images promise: shuffled, block-shuffled, balanced and F²C's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.f2c_loader import dual_loader, dual_order
from data.loader import Loader
from data.order import balanced, block_shuffled, named_order, shuffled
from data.pair_loader import pair_loader, pair_order, single_image_identities
from data.types import Int64
from recognition.doctor import wait_advice

counts = st.integers(1, 400)
seeds = st.integers(0, 2**31)


@given(counts, seeds, st.integers(0, 5))
def test_shuffled_is_a_permutation_of_its_seed_and_epoch(count: int, seed: int, epoch: int) -> None:
    order = shuffled(count, seed=seed, epoch=epoch)
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, shuffled(count, seed=seed, epoch=epoch))


def test_shuffled_places_every_image_everywhere() -> None:
    """In 6000 epochs each of 6 images has each of 6 places 1000 times, ± 5 standard deviations."""
    orders = np.stack([shuffled(6, seed=1, epoch=epoch) for epoch in range(6000)])
    table = np.array(
        [[(orders[:, place] == image).sum() for image in range(6)] for place in range(6)]
    )
    assert np.abs(table - 1000).max() < 5 * np.sqrt(6000 / 6 * 5 / 6)


@given(counts, seeds, st.integers(0, 3), st.integers(1, 50), st.integers(1, 9))
def test_block_shuffle_is_a_permutation(
    count: int, seed: int, epoch: int, block: int, mixed: int
) -> None:
    order = block_shuffled(count, seed=seed, epoch=epoch, block=block, mixed=mixed)
    assert sorted(order.tolist()) == list(range(count))


def test_block_shuffle_stays_in_few_places_at_a_time_and_mixes_them() -> None:
    order = block_shuffled(100_000, seed=0, epoch=0, block=50, mixed=8)
    windows = order[: 99_000 // 400 * 400].reshape(-1, 400)
    touched = [len(np.unique(window // 50)) for window in windows]
    # A window overlaps two runs of 8 blocks, and a block overlaps two cells of 50.
    assert np.median(touched) <= 2 * 2 * 8
    assert (np.abs(np.diff(order)) == 1).mean() < 0.02
    other = block_shuffled(100_000, seed=0, epoch=1, block=50, mixed=8)
    assert not np.array_equal(order, other)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 12), min_size=8, max_size=150), seeds, st.integers(1, 5))
def test_balanced_groups(labels: list[int], seed: int, images: int) -> None:
    array = np.array(labels)
    order = balanced(array, seed=seed, epoch=2, images=images)
    groups = order.reshape(-1, images)
    assert len(groups) == len(labels) // images
    assert (array[groups] == array[groups][:, :1]).all()
    size = np.bincount(array, minlength=13)
    for group in groups:
        assert len(set(group.tolist())) == min(images, size[array[group[0]]])
    identities = len(np.unique(array))
    for start in range(0, len(groups), identities):
        turn = array[groups[start : start + identities, 0]]
        assert len(np.unique(turn)) == len(turn)


def test_balanced_deals_all_images_before_repeating() -> None:
    labels = np.repeat(np.arange(3), 12)
    order = balanced(labels, seed=5, epoch=0, images=4)
    assert sorted(order.tolist()) == list(range(36))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=120), seeds, st.sampled_from([2, 4, 6]))
def test_dual_order(labels: list[int], seed: int, b: int) -> None:
    array = np.array(labels)
    if len(np.unique(array)) < b:
        return
    size = np.bincount(array, minlength=10)
    order = dual_order(array, seed=seed, epoch=1, identities=b).reshape(-1, 3 * b)
    assert len(order) == len(labels) // b
    half = b // 2
    first, instance1, second, instance2 = np.split(order, [b, b + half, 2 * b + half], axis=1)
    assert (array[first] == array[second]).all()
    assert ((first != second) == (size[array[first]] > 1)).all()
    assert all(len(set(array[row].tolist())) == b for row in first)
    instances = np.concatenate([instance1, instance2], 1).reshape(-1)
    assert len(set(instances.tolist())) == len(instances) == len(labels) // b * b


def test_dual_pairs_are_uniform() -> None:
    """Each ordered pair of an identity with 3 images comes equally often."""
    labels = np.repeat([0, 1], 3)
    pairs = np.zeros((6, 6), int)
    for epoch in range(4000):
        order = dual_order(labels, seed=0, epoch=epoch, identities=2).reshape(-1, 6)
        np.add.at(pairs, (order[:, :2], order[:, 3:5]), 1)
    expected = 4000 * 3 / 6
    mine = pairs[:3, :3]
    assert (np.diag(mine) == 0).all()
    assert np.abs(mine[~np.eye(3, dtype=bool)] - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_dual_identities_are_drawn_by_the_weight_of_their_images(weight: float) -> None:
    labels = np.repeat([3, 5, 6, 9], [1, 4, 16, 79])
    rows = [
        dual_order(labels, seed=0, epoch=e, identities=4, image_weight=weight).reshape(-1, 12)
        for e in range(400)
    ]
    first, second = np.concatenate(rows)[:, :4], np.concatenate(rows)[:, 6:10]
    assert (labels[first] == labels[second]).all()
    assert ((first == second) == (labels[first] == 3)).all()
    share = np.array([1.0, 4, 16, 79]) ** weight
    expected = share / share.sum() * first.size
    found = np.bincount(labels[first].ravel(), minlength=10)[[3, 5, 6, 9]]
    assert (np.abs(found - expected) < 5 * np.sqrt(expected)).all()
    assert len(np.unique(first)) == 100


class Faces:
    """Image i has the color (i, label, 0)."""

    def __init__(self, labels: Int64) -> None:
        self.labels = labels
        self.num_classes = int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return b"P6 2 2 255\n" + bytes([index, int(self.labels[index]), 0]) * 4

    def describe(self, index: int) -> str:
        return str(index)


def test_dual_loader_gives_x_and_y_and_resumes_on_other_ranks() -> None:
    faces = Faces(np.repeat(np.arange(10), 6))
    options: dict[str, Any] = {"identities": 4, "size": 2, "seed": 9, "threads": 2}
    batches = list(dual_loader(faces, **options))
    assert len(batches) == 15
    for batch in batches:
        assert batch.labels[:4].tolist() == batch.labels[6:10].tolist()
        assert (batch.images[:4, 0, 0, 0] != batch.images[6:10, 0, 0, 0]).all()
        assert batch.images[:, 1, 0, 0].tolist() == batch.labels.tolist()
    loader = dual_loader(faces, **options)
    for step, _ in enumerate(loader):
        if step == 2:
            break
    ranks = [dual_loader(faces, **options, rank=rank, world=2, step_images=12) for rank in range(2)]
    for one in ranks:
        one.load_state_dict(loader.state_dict())
    resumed = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert [b.labels.tolist() for b in resumed] == [b.labels.tolist() for b in batches[3:]]
    with pytest.raises(ValueError, match="step_images 12 is no multiple of 24"):
        dual_loader(faces, **{**options, "identities": 8}, step_images=12)


def test_a_dual_epoch_with_smaller_batches_shows_the_same_images_once() -> None:
    """By image. Those by identity are drawn anew."""
    faces = Faces(np.repeat(np.arange(10), 6))
    options: dict[str, Any] = {"size": 2, "seed": 9, "threads": 0, "step_images": 24}

    def by_image(loader: Loader) -> Iterator[int]:
        for batch in loader:
            quarters = batch.images[:, 0, 0, 0].reshape(2, 3, -1)  # thirds of each half
            yield from quarters[:, 2].flatten().tolist()

    loader = dual_loader(faces, identities=8, **options)
    seen = list(islice(by_image(loader), 2 * 8))
    smaller = dual_loader(faces, identities=4, **options)
    smaller.load_state_dict(loader.state_dict())
    seen += by_image(smaller)
    assert (smaller.epoch, smaller.consumed) == (1, 0)
    assert seen == shuffled(60, seed=9, epoch=0).tolist()[:56]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 9), min_size=12, max_size=120),
    seeds,
    st.integers(1, 6),
    st.booleans(),
)
def test_pair_order(labels: list[int], seed: int, b: int, left_out: bool) -> None:
    array = np.array(labels)
    size = np.bincount(array, minlength=10)
    visited = int((size > left_out).sum())
    if not visited:
        return
    order = pair_order(array, seed=seed, epoch=1, pairs=b, leave_out_single=left_out)
    assert len(order) == len(labels) // (2 * b) * 2 * b
    first, second = (half.flatten() for half in np.split(order.reshape(-1, 2 * b), 2, axis=1))
    assert (array[first] == array[second]).all()
    assert ((first != second) == (size[array[first]] > 1)).all()
    assert not left_out or size[array[first]].min(initial=2) > 1
    # People come in rounds, in which each comes once. Which pairs come does not depend on b.
    for start in range(0, len(first), visited):
        turn = array[first[start : start + visited]]
        assert len(np.unique(turn)) == len(turn)
    one_by_one = pair_order(array, seed=seed, epoch=1, pairs=1, leave_out_single=left_out)
    assert np.array_equal(np.stack([first, second], 1).flatten(), one_by_one[: len(order)])


def test_either_image_of_a_pair_may_be_the_first() -> None:
    labels = np.repeat([0, 1], [2, 3])
    pairs = np.zeros((5, 5), int)
    for epoch in range(4000):
        order = pair_order(labels, seed=0, epoch=epoch, pairs=2).reshape(-1, 4)
        np.add.at(pairs, (order[:, :2], order[:, 2:]), 1)
    for own, ways in ((pairs[:2, :2], 2), (pairs[2:, 2:], 6)):
        assert (np.diag(own) == 0).all()
        found = own[~np.eye(len(own), dtype=bool)]
        assert np.abs(found - 4000 / ways).max() < 5 * np.sqrt(4000 / ways)


def test_pair_loader_gives_two_halves_and_resumes_on_other_ranks() -> None:
    faces = Faces(np.repeat(np.arange(10), 6))
    options: dict[str, Any] = {"pairs": 3, "size": 2, "seed": 9, "threads": 2}
    batches = list(pair_loader(faces, **options))
    assert len(batches) == 10
    for batch in batches:
        assert batch.labels[:3].tolist() == batch.labels[3:].tolist()
        assert (batch.images[:3, 0, 0, 0] != batch.images[3:, 0, 0, 0]).all()
    loader = pair_loader(faces, **options)
    next(iter(loader))
    next(iter(loader))
    ranks = [pair_loader(faces, **options, rank=rank, world=2, step_images=6) for rank in range(2)]
    for one in ranks:
        one.load_state_dict(loader.state_dict())
    resumed = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert [b.labels.tolist() for b in resumed] == [b.labels.tolist() for b in batches[2:]]


@pytest.mark.parametrize("identities", [0, 3, 12])
def test_impossible_dual_batches_are_refused(identities: int) -> None:
    with pytest.raises(ValueError, match="expected an even number"):
        dual_loader(
            Faces(np.repeat(np.arange(10), 2)), identities=identities, size=2, seed=0, threads=0
        )


def test_single_image_identities_are_counted() -> None:
    assert single_image_identities(np.array([5, 5, 1, 3, 3, 9])) == 2


@pytest.mark.parametrize(("name", "length"), [("shuffled", 61), ("block", 61), ("balanced", 60)])
def test_orders_by_name_resume_in_the_loader(name: str, length: int) -> None:
    faces = Faces(np.arange(61) % 7)
    options: dict[str, Any] = {"batch_size": 8, "size": 2, "seed": 4, "threads": 0}

    def make() -> Loader:
        return Loader(
            faces,
            **options,
            order=named_order(faces.labels, name, seed=4, batch_size=8, block=5, images=4),
        )

    whole = [batch.images[:, 0, 0, 0].tolist() for batch in make()]
    assert make().order.length == length
    first = make()
    next(iter(first))
    second = make()
    second.load_state_dict(first.state_dict())
    assert [batch.images[:, 0, 0, 0].tolist() for batch in second] == whole[1:]


def test_wrong_orders_are_named() -> None:
    labels = np.arange(10)
    with pytest.raises(ValueError, match="'sorted': expected shuffled, block or balanced"):
        named_order(labels, "sorted", seed=0, batch_size=8)
    with pytest.raises(ValueError, match="multiple"):
        named_order(labels, "balanced", seed=0, batch_size=9, images=4)


def test_advice_is_given_only_when_data_are_too_slow() -> None:
    assert wait_advice(0.1, threads=1, cores=8) is None
    assert "data.threads from 1 towards this machine's 8" in str(
        wait_advice(0.4, threads=1, cores=8)
    )
    assert "data.order=block" in str(wait_advice(0.4, threads=8, cores=8))
