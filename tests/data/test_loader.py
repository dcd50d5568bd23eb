"""What the loader promises about batches, order, resuming, errors and the end of its threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from data.decode import decode
from data.faces import open_faces
from data.loader import Loader
from data.types import Batch


class Numbers:
    """A FaceSet whose image i is a 4×4 PPM of the color (i, label, 7).

    The images `broken` do not decode, and the image `fatal` raises RuntimeError.
    """

    def __init__(
        self, count: int, classes: int = 5, broken: tuple[int, ...] = (), fatal: int = -1
    ) -> None:
        self.labels = np.arange(count) % classes
        self.num_classes = classes
        self.broken = broken
        self.fatal = fatal

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        if index == self.fatal:
            raise RuntimeError("a bug")
        if index in self.broken:
            return b"no image"
        return b"P6 4 4 255\n" + bytes([index, int(self.labels[index]), 7]) * 16

    def describe(self, index: int) -> str:
        return f"number {index}"


def numbers_of(batches: list[Batch]) -> list[list[int]]:
    return [batch.images[:, 0, 0, 0].tolist() for batch in batches]


def make(count: int = 50, *, threads: int = 2, **options: Any) -> Loader:
    faces = options.pop("faces", None) or Numbers(count)
    return Loader(
        faces, batch_size=options.pop("batch_size", 8), size=4, seed=3, threads=threads, **options
    )


def test_batch_holds_the_images_of_its_labels() -> None:
    batch = next(iter(make()))
    assert batch.images.shape == (8, 3, 4, 4)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert torch.equal(batch.images[:, 1, 2, 2], batch.labels.to(torch.uint8))
    assert (batch.images[:, 2] == 7).all()


def test_synthetic_batch_equals_single_decodes() -> None:
    faces = open_faces("synthetic:identities=3,images=4,size=32")
    loader = Loader(faces, batch_size=12, size=16, seed=0, threads=2)
    batch = next(iter(loader))
    order = loader.order.indices(0)
    for row, index in enumerate(order):
        assert np.array_equal(
            batch.images[row].permute(1, 2, 0).numpy(), decode(faces.read(int(index)), 16)
        )


def test_epoch_is_each_image_once_and_epochs_differ() -> None:
    loader = make(48)
    first, second = (sum(numbers_of(list(loader)), []) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert (loader.epoch, loader.consumed) == (2, 0)


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_batches_do_not_depend_on_threads(threads: int) -> None:
    assert numbers_of(list(make(threads=threads))) == numbers_of(list(make(threads=3, prefetch=1)))


@pytest.mark.parametrize("stopped_at", [0, 1, 4, 5])
def test_resume_gives_the_very_next_batch(stopped_at: int) -> None:
    whole = make()
    expected = numbers_of(list(whole)) + numbers_of(list(whole))
    loader = make(threads=4)
    got = []
    for step, batch in enumerate(loader):
        got.append(batch)
        if step == stopped_at:
            break
    resumed = make(threads=1)
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    if resumed.epoch == 1:
        rest += list(resumed)
    assert numbers_of(got + rest) == expected


def test_resume_on_other_ranks_continues_where_all_ranks_were() -> None:
    two = [make(48, rank=rank, world=2, batch_size=6) for rank in range(2)]
    seen = []
    for loader in two:
        batches = iter(loader)
        seen += sum(numbers_of([next(batches), next(batches)]), [])
        batches.close()
    resumed = [make(48, rank=rank, world=3, batch_size=4) for rank in range(3)]
    for loader in resumed:
        loader.load_state_dict(two[0].state_dict())
        seen += sum(numbers_of(list(loader)), [])
    assert sorted(seen) == list(range(48))


def test_ranks_divide_the_global_batch() -> None:
    alone = numbers_of(list(make(50, batch_size=12)))
    shares = [numbers_of(list(make(50, rank=rank, world=3, batch_size=4))) for rank in range(3)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == alone
    assert len(shares[0]) == 4


def test_last_batch_is_kept_on_request() -> None:
    loader = make(50, drop_last=False)
    sizes = [len(batch.labels) for batch in loader]
    assert sizes == [8] * 6 + [2]
    assert (loader.epoch, loader.consumed) == (1, 0)


def test_undecodable_image_is_replaced_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    loader = make(faces=Numbers(16, broken=(5,)), batch_size=16)
    batch = next(iter(loader))
    assert loader.skipped == 1
    assert "number 5" in caplog.text
    assert 5 not in batch.images[:, 0, 0, 0].tolist()
    assert torch.equal(batch.images[:, 1, 0, 0], batch.labels.to(torch.uint8))


def test_each_image_carries_its_own_number_also_a_stand_in() -> None:
    faces = Numbers(50, broken=(3, 4, 20, 21, 40))
    for rank in range(2):
        for batch in make(faces=faces, rank=rank, world=2):
            assert batch.indices is not None
            assert batch.indices.dtype == np.int64
            assert batch.indices.tolist() == batch.images[:, 0, 0, 0].tolist()
            assert np.array_equal(faces.labels[batch.indices], batch.labels.numpy())


def test_batch_without_a_good_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image of a whole batch"):
        list(make(faces=Numbers(8, broken=tuple(range(8)))))


@pytest.mark.parametrize("threads", [0, 2])
def test_error_of_a_thread_reaches_the_consumer_and_threads_end(threads: int) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="a bug"):
        list(make(faces=Numbers(50, fatal=20), threads=threads))
    assert threading.active_count() == before


def test_break_ends_the_threads() -> None:
    before = threading.active_count()
    batches = iter(make())
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_state_of_another_set_is_refused() -> None:
    with pytest.raises(ValueError, match="images 50, this run 40"):
        make(40).load_state_dict(make(50).state_dict())


def test_batch_larger_than_the_set_is_refused() -> None:
    alone = "^optim.batch_size: 8 make a step of 8 images, but an epoch has 5; give at most 5$"
    with pytest.raises(ValueError, match=alone):
        make(5)
    of_many = (
        "^optim.batch_size: 8 × 2 ranks × 3 batches make a step of 48 images, but an epoch has 40; "
        "give at most 6$"
    )
    with pytest.raises(ValueError, match=of_many):
        make(40, rank=0, world=2, accumulation=3)


def test_images_lie_in_memory_as_they_were_decoded() -> None:
    batch = next(iter(make()))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
