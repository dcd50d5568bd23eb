"""The class pool's bookkeeping against the published procedure, which goes sample by sample."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recognition.classifiers._gallery import check_equal
from recognition.classifiers._pool import ClassPool
from recognition.distributed import Ranks
from tests.recognition.classifiers.published_pool import Published

CLASSES = 14
BATCHES = st.lists(
    st.tuples(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=9), st.booleans()),
    min_size=1,
    max_size=12,
)


def snapshot(pool: ClassPool) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in pool.named_buffers()}


def order_of(pool: ClassPool) -> list[int]:
    """Identities from least to most recently used."""
    by_age = pool.identities[pool.stamps.argsort()].tolist()
    return [identity for identity in by_age if identity >= 0]


def check_same(pool: ClassPool, reference: Published) -> None:
    assert order_of(pool) == reference.order
    assert {int(i): int(c) for i, c in enumerate(pool.columns) if c >= 0} == reference.column
    owners = {int(i): c for c, i in enumerate(pool.identities) if i >= 0}
    assert owners == reference.column
    for column, cursor in reference.cursor.items():
        assert pool.cursors[column] == cursor
    for (slot, column), feature in reference.slots.items():
        assert pool.features[slot, column, 0] == feature


@settings(max_examples=150, deadline=None)
@given(batches=BATCHES, size=st.integers(9, CLASSES + 2))
def test_columns_slots_evictions_and_order_equal_the_one_by_one_procedure(
    batches: list[tuple[list[int], bool]], size: int
) -> None:
    pool, reference = ClassPool(size, CLASSES, 1), Published(size)
    count = 0
    for identities, commit in batches:
        features = [float(count + i + 1) for i in range(len(identities))]
        count += len(identities)
        published, ours = copy.deepcopy(reference), copy.deepcopy(reference)
        renewed_published = published.batch(identities, features, touch_first=False)
        renewed = ours.batch(identities, features, touch_first=True)
        if not set(published.evicted[len(reference.evicted) :]) & set(identities):
            assert (published, renewed_published) == (ours, renewed)

        before = snapshot(pool)
        plan = pool.plan(torch.tensor(identities))
        given = torch.tensor(features)[:, None]
        others = pool.other_features(plan, given)
        # rolled back: exact
        assert all(torch.equal(before[name], buffer) for name, buffer in pool.named_buffers())
        assert plan.columns.tolist() == [ours.column[i] for i in identities]
        assert plan.last.tolist() == [
            x not in identities[i + 1 :] for i, x in enumerate(identities)
        ]
        for place in plan.last.nonzero()[:, 0].tolist():
            column = int(plan.columns[place])
            assert plan.cursors[place] == ours.cursor[column]
            w1 = ours.slots[0, column]
            w2 = ours.slots[1, column] if column in renewed else w1
            pair = [features[place], others[place, 0]]
            assert (pair if ours.cursor[column] == 1 else pair[::-1]) == [w1, w2]
        left = set(ours.column.values()) - set(plan.columns.tolist())
        assert set(pool.untouched(plan).nonzero()[:, 0].tolist()) == left
        if commit:
            pool.commit(plan, given)
            reference = ours
            check_same(pool, reference)


@pytest.mark.parametrize(("size", "samples"), [(40, 20), (64, 4), (200, 6)])
def test_the_least_recently_used_leave_a_pool_of_many_groups(size: int, samples: int) -> None:
    """The search for the oldest columns goes by groups of 16."""
    pool, reference = ClassPool(size, 2 * size, 1), Published(size)
    rng = np.random.default_rng(size)
    for number in range(4 * size // samples):
        identities = rng.integers(0, 2 * size, samples).tolist()
        features = (np.arange(samples) + number * samples + 1.0).tolist()
        reference.batch(identities, features, touch_first=True)
        pool.commit(pool.plan(torch.tensor(identities)), torch.tensor(features)[:, None])
        check_same(pool, reference)
    assert len(reference.evicted) > size


def test_a_batch_as_large_as_the_pool_replaces_all_of_it() -> None:
    pool = ClassPool(4, 8, 1)
    for identities in ([0, 1, 2, 3], [4, 5, 6, 7], [0, 0, 0, 5]):
        plan = pool.plan(torch.tensor(identities))
        pool.commit(plan, torch.ones(4, 1))
    assert order_of(pool) == [6, 7, 0, 5]


def test_no_operation_waits_for_the_device() -> None:
    """On the meta device, any operation that needs a value on the host raises an error."""
    pool = ClassPool(50, 100, 8).to("meta")
    labels = torch.zeros(20, dtype=torch.int64, device="meta")
    plan = pool.plan(labels)
    features = torch.zeros(20, 8, device="meta")
    assert pool.other_features(plan, features).shape == features.shape
    pool.commit(plan, features)
    assert pool.untouched(plan).shape == (50,)


def test_state_survives_a_checkpoint() -> None:
    torch.manual_seed(0)
    pools = [ClassPool(30, 100, 4), ClassPool(30, 100, 4)]
    rng = np.random.default_rng(0)

    def feed(pool: ClassPool, labels: torch.Tensor) -> None:
        plan = pool.plan(labels)
        pool.commit(plan, labels[:, None] * torch.ones(4))

    batches = [torch.from_numpy(rng.integers(0, 100, 20)) for _ in range(10)]
    for labels in batches[:5]:
        feed(pools[0], labels)
    pools[1].load_state_dict(pools[0].state_dict())
    for labels in batches[5:]:
        feed(pools[0], labels)
        feed(pools[1], labels)
    assert all(
        torch.equal(a, b) for a, b in zip(pools[0].buffers(), pools[1].buffers(), strict=True)
    )


class TwoRanks(Ranks):
    """Rank 0 of two; a test gives the tensors of the other rank."""

    def __init__(self, theirs: torch.Tensor | None = None) -> None:
        super().__init__(0, 2)
        self.__dict__.update(theirs=theirs, seen=[])

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self.__dict__["seen"].append(tensor)
        theirs = self.__dict__["theirs"]
        return torch.cat([tensor, tensor if theirs is None else theirs])


@pytest.mark.parametrize(
    "name", ["features", "identities", "columns", "stamps", "cursors", "clock"]
)
def test_pools_that_differ_in_one_entry_are_told_apart(name: str) -> None:
    ours, theirs = ClassPool(30, 100, 4), ClassPool(30, 100, 4)
    getattr(theirs, name).view(-1)[-1] += 1
    recorder = TwoRanks()
    check_equal(theirs, recorder)
    with pytest.raises(RuntimeError, match="gallery features differ"):
        check_equal(ours, TwoRanks(recorder.__dict__["seen"][0]))
