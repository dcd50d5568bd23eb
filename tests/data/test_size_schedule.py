"""Smaller images at the beginning of a run: which steps have them, and what a loader gives."""

import pytest
import torch

from data.augment import Augment
from data.decode import decode
from data.faces import open_faces
from data.loader import Loader
from data.size_schedule import SizeSchedule
from data.steps import Steps
from recognition.config import ConfigError
from recognition.distributed import Ranks
from recognition.experiment import build_parts
from recognition.parse import load_config


def test_each_size_has_its_share_of_the_steps() -> None:
    steps = Steps(images=10, planned=10, epoch=50)
    schedule = SizeSchedule(112, {80: 0.2, 56: 0.5}, epochs=4)
    found = [schedule.at(place, steps) for place in range(0, 200, 10)]
    assert found == [56] * 10 + [80] * 4 + [112] * 6
    # Steps of half the size: a planned step is never divided.
    halves = [schedule.at(place, Steps(5, 10, 50)) for place in range(0, 200, 5)]
    assert halves == [size for size in found for _ in range(2)]
    assert SizeSchedule(112).at(0, steps) == 112


def test_a_loader_decodes_at_the_size_of_the_step_also_after_a_resume() -> None:
    faces = open_faces("synthetic:identities=5,images=5")
    sizes = SizeSchedule(40, {24: 0.5, 32: 0.25}, epochs=2)

    def loader() -> Loader:
        return Loader(faces, batch_size=3, size=sizes, seed=1, threads=1, accumulation=2)

    whole = loader()
    batches = [batch for _ in range(2) for batch in whole]
    found = [batch.images.shape[-1] for batch in batches]
    # 25 images: 4 steps of 6 an epoch, 8 in all, each of two batches.
    assert found == [24] * 8 + [32] * 4 + [40] * 4

    at = whole.order.indices(1)[12:15]
    for image, index in zip(batches[12].images, at, strict=True):
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(decode(faces.read(index), 40)))

    later = loader()
    later.load_state_dict({**whole.state_dict(), "epoch": 1, "consumed": 6})
    for batch, same in zip(later, batches[10:], strict=True):
        assert torch.equal(batch.images, same.images)


@pytest.mark.parametrize(("size", "shift"), [(112, 4), (56, 2), (40, 1)])
def test_a_shift_is_smaller_on_smaller_images(size: int, shift: int) -> None:
    options = Augment(shift=4, blur=0.5)
    assert options.for_size(size, 112) == Augment(shift=shift, blur=0.5)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.size_schedule={32: 0.6, 48: 0.4}", "shares of less than 1 in all"),
        ("data.size_schedule={64: 0.5}", "sizes below data.size=64"),
        ("data.size_schedule={32.5: 0.5}", "data.size_schedule"),
        ("data.size_schedule={8: 0.5}", "data.size_schedule"),
    ],
)
def test_a_schedule_that_does_not_end_with_the_full_size_is_refused(
    override: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config("configs/quickstart.yaml", ["data.size=64", override])


def test_a_backbone_of_one_size_is_refused() -> None:
    overrides = ["data.size=64", "data.size_schedule={32: 0.5}", "run.output=unused"]
    overrides += ["data.train=synthetic:identities=20,images=20", "optim.batch_size=16"]
    config = load_config("configs/quickstart.yaml", [*overrides, "backbone=mobilefacenet"])
    with pytest.raises(ValueError, match="mobilefacenet takes images of one size only"):
        build_parts(config, open_faces(config.data.train), torch.device("cpu"), Ranks())
