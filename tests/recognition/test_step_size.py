"""Images per optimizer step are kept on any number of processes, or changed as the user asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from recognition.config import Config
from recognition.parse import load_config
from recognition.step_size import rate_share, with_step_size

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"


def config_of(batch_size: int, accumulation: int, planned: int | None, *more: str) -> Config:
    step = [f"optim.step_images={planned}"] if planned else []
    batch = [f"optim.batch_size={batch_size}", f"optim.accumulation={accumulation}"]
    return load_config(QUICKSTART, [*batch, *step, *more])


@pytest.mark.parametrize(
    ("written", "planned", "processes", "fitted"),
    [
        ((16, 1), None, 3, (16, 1)),  # a first start takes what is written
        ((16, 1), 16, 2, (8, 1)),
        ((16, 1), 32, 1, (16, 2)),
        ((16, 1), 48, 2, (12, 2)),
        ((96, 1), 768, 6, (64, 2)),
        ((128, 8), 1024, 8, (128, 1)),
        ((64, 1), 128, 1, (64, 2)),  # a smaller batch, where memory is short
        ((256, 1), 128, 1, (128, 1)),
        ((128, 4), 128, 1, (128, 1)),
    ],
)
def test_batches_are_fitted_to_the_step(
    written: tuple[int, int], planned: int | None, processes: int, fitted: tuple[int, int]
) -> None:
    config, told = with_step_size(config_of(*written, planned), processes)
    optim = config.optim
    assert (optim.batch_size, optim.accumulation) == fitted
    assert optim.step_images == fitted[0] * fitted[1] * processes
    assert (told is None) == (written == fitted)
    assert told is None or f"optim.batch_size={fitted[0]} optim.accumulation={fitted[1]}" in told
    assert with_step_size(config, processes) == (config, None)


@pytest.mark.parametrize(
    ("written", "planned", "processes", "more"),
    [
        (128, 1024, 6, ()),
        (8, 11, 1, ()),
        (12, 24, 4, ("data.order=balanced",)),  # 6 images per process, but 4 of each identity
        (24, 24, 3, ("classifier=class_pool",)),  # 8 images per process
        (16, 32, 1, ("run.compile=true", "run.compile_mode=reduce-overhead")),
    ],
)
def test_a_step_that_does_not_divide_is_refused_with_both_ways_out(
    written: int, planned: int, processes: int, more: tuple[str, ...]
) -> None:
    config = config_of(written, 1, planned, *more)
    with pytest.raises(ValueError, match=f"^optim.step_images: {planned} images") as caught:
        with_step_size(config, processes)
    told = str(caught.value)
    assert f"optim.changed_batch=keep_rate (steps of {written * processes} images" in told
    assert "optim.changed_batch=scale_rate" in told
    assert "\n" not in told


def test_a_class_pool_gets_batches_that_it_can_divide() -> None:
    config, _ = with_step_size(config_of(48, 1, 96, "classifier=class_pool"), 4)
    assert (config.optim.batch_size, config.optim.accumulation) == (24, 1)
    config, _ = with_step_size(config_of(36, 1, 96, "classifier=class_pool"), 1)
    assert (config.optim.batch_size, config.optim.accumulation) == (24, 4)


@pytest.mark.parametrize(("choice", "share"), [("keep_rate", 1.0), ("scale_rate", 0.75)])
def test_the_user_chooses_another_step(choice: str, share: float) -> None:
    written = config_of(128, 1, 1024, f"optim.changed_batch={choice}")
    config, told = with_step_size(written, 6)
    assert config == written
    assert rate_share(config, 6) == share
    assert told is not None
    assert "768 images instead of the planned 1024" in told
    assert with_step_size(written, 8) == (written, None)
    assert rate_share(written, 8) == 1.0
