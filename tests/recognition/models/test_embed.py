"""Model.embed: what it takes, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from data.decode import decode, encode_jpeg
from recognition.config import Part
from recognition.models.facts import ModelFacts, Normalization
from recognition.models.model import BATCH, Model

SIZE = 16
RNG = np.random.default_rng(0)


class Recorder(nn.Module):
    """Gives its input back, as embeddings, and remembers how many images each batch had."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(images))
        return images.flatten(1)


def model(normalization: Normalization = Normalization()) -> tuple[Model, Recorder]:  # noqa: B008
    facts = ModelFacts(architecture=Part("ir"), size=SIZE, normalization=normalization)
    return Model(recorder := Recorder(), facts, torch.device("cpu")), recorder


def arrays(count: int, side: int = SIZE) -> list[np.ndarray]:
    return [RNG.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]


def expected(images: list[np.ndarray]) -> torch.Tensor:
    """(x − 127.5) / 127.5 in float64, channels first."""
    return torch.from_numpy(np.stack([(i.transpose(2, 0, 1) - 127.5) / 127.5 for i in images]))


def test_bytes_floats_arrays_and_files_are_one_and_the_same(tmp_path: Path) -> None:
    images = arrays(5)
    files = [tmp_path / f"{at}.png" for at in range(5)]
    for file, image in zip(files, images, strict=True):
        cv2.imwrite(str(file), image[:, :, ::-1])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    embed = model()[0].embed
    floats = (pixels / 255).to(torch.float64)
    for given in (pixels, pixels / 255, floats, images, files, [str(f) for f in files]):
        got = embed(given)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected(images).flatten(1), rtol=0, atol=1e-6)
    mixed: list[Any] = [files[0], images[1], np.float32(images[2] / 255), str(files[3]), images[4]]
    torch.testing.assert_close(embed(mixed), embed(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("std", [127.5, 128.0, 1.0])
def test_all_pixels_are_normalized_as_written(std: float) -> None:
    mean = 0.0 if std == 1 else 127.5
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    got = model(Normalization(mean, std))[0].embed(ramp).double()
    torch.testing.assert_close(got, (ramp.double() - mean).div(std).flatten(1), rtol=0, atol=1e-7)


def test_long_lists_are_embedded_in_batches() -> None:
    images = arrays(BATCH + 3)
    whole, recorder = model()
    assert torch.equal(
        whole.embed(images), whole.embed(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    )
    assert recorder.batches == [BATCH, 3, BATCH, 3]


def test_a_network_in_training_stays_in_training() -> None:
    whole, recorder = model()
    recorder.train()
    whole.embed(arrays(1))
    assert recorder.training


def test_square_pictures_in_a_list_are_resized_as_elsewhere(tmp_path: Path) -> None:
    (large,) = arrays(1, 3 * SIZE)
    encoded = encode_jpeg(large)
    (tmp_path / "a.jpg").write_bytes(encoded)
    got = model()[0].embed([tmp_path / "a.jpg"])
    torch.testing.assert_close(
        got.double(), expected([decode(encoded, SIZE)]).flatten(1), rtol=0, atol=1e-6
    )


def wrong() -> dict[str, tuple[Any, str]]:
    good = torch.zeros(2, 3, SIZE, SIZE)
    return {
        "channels last": (good.permute(0, 2, 3, 1), r"shape \(2, 16, 16, 3\), expected \(B,3,16"),
        "another size": (torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\), expected"),
        "one image": (good[0], r"shape \(3, 16, 16\)"),
        "float of bytes": (good + 200, "floats from 200 to 200, expected 0 to 1"),
        "normalized": (good - 1, "floats from -1 to -1"),
        "not a number": (good / 0, "floats from nan to nan"),
        "whole numbers": (good.int(), r"found torch\.int32, expected uint8 or float"),
        "nothing": ([], "found no image"),
        "an empty tensor": (good[:0], "found no image"),
        "a name": ("a.jpg", "found str, expected a tensor"),
        "an array alone": (np.zeros((SIZE, SIZE, 3), np.uint8), "found ndarray, expected a tensor"),
        "a gray array": (
            [np.zeros((SIZE, SIZE), np.uint8)],
            r"image 0: found ndarray of shape \(1",
        ),
        "not square": ([np.zeros((8, 9, 3), np.uint8)], r"image 0: has 9×8 pixels.*tools\.align"),
        "float array": ([np.full((8, 8, 3), 3.0)], "image 0: found floats from 3 to 3"),
        "a number": ([3], "image 0: found int, expected the name of a file or an array"),
    }


@pytest.mark.parametrize("case", wrong())
def test_other_images_are_refused(case: str) -> None:
    given, problem = wrong()[case]
    with pytest.raises(ValueError, match=problem) as error:
        model()[0].embed(given)
    assert "\n" not in str(error.value)


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        model()[0].embed([path])
    with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
        model()[0].embed([tmp_path / "b.jpg"])
