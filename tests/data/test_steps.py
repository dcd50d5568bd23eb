"""An epoch shows its planned images once, however often a run resumes with other steps."""

from __future__ import annotations

from itertools import islice
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Loader
from data.order import shuffled
from data.steps import Steps
from tests.data.test_loader import Numbers, numbers_of

SEED, EPOCHS = 3, 3
Division = tuple[int, int, int]  # ranks, batch size, accumulation


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 20), min_size=1, max_size=9))
def test_places_of_a_run_whose_steps_change(
    planned: int, planned_steps: int, sizes: list[int]
) -> None:
    """The reference is a list of all images, of which each step takes the next ones."""
    epoch = planned * planned_steps
    sizes = [min(size, epoch) for size in sizes]
    left = [list(range(epoch * i, epoch * (i + 1))) for i in range(EPOCHS)]
    place, turn = 0, 0
    while left:
        size = sizes[min(turn, len(sizes) - 1)]
        steps = Steps(size, planned, epoch)
        place = steps.whole(place)  # what a resume does
        literal = [len(images) // size for images in left]
        assert steps.left(place, EPOCHS) == sum(literal)
        if not literal[0]:
            left.pop(0)
            continue
        assert left[0][0] == place
        assert steps.end(place % epoch) == place % epoch + literal[0] * size
        del left[0][:size]
        if len(left[0]) < size:
            left.pop(0)
        place, turn = steps.after(place), turn + 1
    assert place == EPOCHS * epoch
    assert steps.left(place, EPOCHS) == 0


def loaders(images: int, division: Division, planned: int) -> list[Loader]:
    """The loaders of all ranks."""
    world, batch_size, accumulation = division
    options: dict[str, Any] = {"size": 4, "seed": SEED, "threads": 0}
    return [
        Loader(
            Numbers(images),
            batch_size=batch_size,
            rank=rank,
            world=world,
            accumulation=accumulation,
            step_images=planned,
            **options,
        )
        for rank in range(world)
    ]


def images_of(ranks: list[Loader], steps: int) -> list[int]:
    """The images of the next steps, as the epoch orders them; it may end before."""
    per_step = ranks[0].steps.images // ranks[0].global_batch
    batches = islice(zip(*ranks, strict=True), steps * per_step)
    return [image for of_ranks in batches for image in sum(numbers_of(list(of_ranks)), [])]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(20, 60),
    st.sampled_from([4, 6, 12]),
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=4
    ),
    st.integers(1, 3),
)
def test_every_resume_goes_on_with_the_next_images(
    images: int, planned: int, divisions: list[Division], steps: int
) -> None:
    order = shuffled(images, seed=SEED, epoch=0).tolist()
    epoch = images // planned * planned
    state, seen = None, 0
    for division in divisions:
        if prod(division) > epoch:
            continue
        ranks = loaders(images, division, planned)
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
        if ranks[0].epoch:  # the old state's rest is shorter than a step now
            assert epoch - seen < prod(division)
            break
        found = images_of(ranks, steps)
        assert found == order[seen : seen + len(found)]
        seen += len(found)
        state = ranks[0].state_dict()
        assert [loader.state_dict() for loader in ranks] == [state] * len(ranks)
        if state["epoch"]:
            assert epoch - seen < prod(division)
            break
        assert len(found) == steps * prod(division)


@pytest.mark.parametrize("division", [(1, 8, 1), (1, 4, 2), (2, 2, 2), (2, 4, 1), (1, 2, 1)])
def test_steps_that_divide_the_planned_ones_show_every_planned_image(division: Division) -> None:
    planned = shuffled(61, seed=SEED, epoch=0)[:56].tolist()
    assert images_of(loaders(61, division, 8), 999) == planned


def test_what_larger_steps_leave_out() -> None:
    assert len(images_of(loaders(61, (2, 5, 2), 8), 999)) == 40  # of the planned 56
