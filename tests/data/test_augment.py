"""Augmentation against literal versions, one image at a time."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as tv

from data.augment import (
    Augment,
    augment,
    blur_matrix,
    crop_mask,
    normalize,
    place_matrix,
    recolor,
    resample,
    shrink_matrix,
)
from data.options import fit, options_of

EVERYTHING = Augment(
    flip=0.5, shift=3, zoom=0.2, crop=0.3, photometric=0.5, low_resolution=0.5, blur=0.5, gray=0.2
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (40, 3, 24, 20), dtype=np.uint8)
    )


def test_normalize_is_the_published_formula(images: torch.Tensor) -> None:
    expected = (images.double() / 255 - 0.5) / 0.5
    assert torch.allclose(normalize(images).double(), expected, atol=1e-6)
    assert torch.allclose(normalize(images.float()).double(), expected, atol=1e-6)
    assert normalize(images).dtype == torch.float32


def test_flip_mirrors_half_and_leaves_the_rest(images: torch.Tensor) -> None:
    out = augment(images, Augment(), seed=5)
    plain, mirrored = normalize(images), normalize(images.flip(3))
    flipped = [bool(torch.equal(out[i], mirrored[i])) for i in range(40)]
    assert all(torch.equal(out[i], (mirrored if flipped[i] else plain)[i]) for i in range(40))
    assert 8 <= sum(flipped) <= 32
    assert torch.equal(augment(images, Augment(flip=0), seed=5), plain)
    assert torch.equal(augment(images, Augment(flip=1), seed=5), mirrored)


@pytest.mark.parametrize("options", [Augment(), Augment(shift=2), EVERYTHING])
def test_a_seed_fixes_everything_and_layout_changes_nothing(
    images: torch.Tensor, options: Augment
) -> None:
    before = images.clone()
    first = augment(images, options, seed=7)
    assert torch.equal(first, augment(images, options, seed=7))
    assert not torch.equal(first, augment(images, options, seed=8))
    other_layout = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(first, augment(other_layout, options, seed=7), atol=1e-5)
    assert torch.equal(images, before)
    assert first.min() >= -1
    assert first.max() <= 1


def test_augmentations_act_one_by_one(images: torch.Tensor) -> None:
    """Each option alone changes some of the images, according to its probability."""
    plain = normalize(images)
    for option in ("crop", "photometric", "low_resolution", "blur", "gray"):
        changes: dict[str, Any] = {option: 0.4}
        out = augment(images, Augment(flip=0, **changes), seed=3)
        changed = sum(not torch.equal(out[i], plain[i]) for i in range(40))
        assert 5 <= changed <= 30, option


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-4, 1)])
def test_shift_repeats_edges(images: torch.Tensor, down: int, right: int) -> None:
    one = torch.ones(1)
    rows = place_matrix(24, shift=torch.tensor([float(down)]), scale=one)
    columns = place_matrix(20, shift=torch.tensor([float(right)]), scale=one)
    out = resample(images[:1].float(), rows, columns)
    for y in range(24):
        for x in range(20):
            source = images[0, :, min(max(y - down, 0), 23), min(max(x - right, 0), 19)]
            assert torch.equal(out[0, :, y, x], source.float())


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_zoom_is_a_bilinear_warp_about_the_middle(images: torch.Tensor, scale: float) -> None:
    matrix = torch.eye(3)[:2] / scale
    theta = torch.tensor([[[matrix[0, 0], 0, 0], [0, matrix[1, 1], 0]]])
    grid = F.affine_grid(theta, [1, 3, 20, 20], align_corners=False)
    square = images[:1, :, :20].float()
    expected = F.grid_sample(
        square, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    place = place_matrix(20, shift=torch.zeros(1), scale=torch.tensor([scale]))
    assert torch.allclose(resample(square, place, place), expected, atol=1e-2)


@pytest.mark.parametrize("down", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("up", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("small", [4, 7, 20])
def test_low_resolution_is_interpolate_twice(
    images: torch.Tensor, down: str, up: str, small: int
) -> None:
    square = images[:2, :, :20].float()
    expected = F.interpolate(
        F.interpolate(square, size=(small, small), mode=down), size=(20, 20), mode=up
    )
    matrix = shrink_matrix(20, small, down, up)[None].expand(2, -1, -1)
    assert torch.allclose(resample(square, matrix, matrix), expected, atol=1e-2)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_a_gaussian(images: torch.Tensor, sigma: float) -> None:
    picture = images[0].permute(1, 2, 0).numpy().astype(np.float64)
    radius = 7
    expected = cv2.GaussianBlur(
        picture, (2 * radius + 1,) * 2, sigma, borderType=cv2.BORDER_REPLICATE
    )
    sigmas = torch.tensor([sigma, 2.0])
    rows, columns = blur_matrix(24, sigmas)[:1], blur_matrix(20, sigmas)[:1]
    out = resample(images[:1].float(), rows, columns)[0].permute(1, 2, 0).numpy()
    assert np.abs(out - expected).max() < 0.6
    assert np.allclose(rows.sum(2), 1, atol=1e-6)


def test_crop_mask_keeps_one_rectangle_of_the_stated_area() -> None:
    mask = crop_mask(400, 112, 112, 1.0, torch.Generator().manual_seed(0))[:, 0]
    areas = []
    for one in mask.numpy():
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert one.sum() == height * width
        areas.append(height * width / 112**2)
        assert 0.70 < width / height < 1.43 or 112 in (height, width)
    assert 0.18 < min(areas) < 0.25
    assert 0.9 < max(areas) <= 1.0
    assert crop_mask(400, 112, 112, 0.0, torch.Generator().manual_seed(0)).min() == 1


def test_color_factors_are_torchvisions(images: torch.Tensor) -> None:
    brightness, contrast, saturation = (
        torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) + 0.5
    )
    out = recolor(images.float(), brightness, contrast, saturation) / 255
    for i in range(40):
        expected = tv.adjust_brightness(images[i].float() / 255, brightness[i].item())
        expected = tv.adjust_contrast(expected, contrast[i].item())
        expected = tv.adjust_saturation(expected, saturation[i].item())
        assert torch.allclose(out[i], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "admitted", "refused"),
    [
        *(
            (name, [0, 0.2, 1], [-0.1, 1.5, float("nan"), "often", True])
            for name in ("flip", "crop", "photometric", "low_resolution", "blur", "gray")
        ),
        ("shift", [0, 3], [-1, 1.5, None]),
        ("zoom", [0, 0.9], [-0.1, 1.0, float("inf")]),
    ],
)
def test_every_option_has_its_range(
    name: str, admitted: list[float], refused: list[object]
) -> None:
    hint = options_of(Augment)[name].hint
    assert [fit(hint, value) for value in admitted] == admitted
    for value in refused:
        with pytest.raises(ValueError, match="^found .*, expected a (whole )?number at least 0"):
            fit(hint, value)


def test_the_table_of_ranges_above_is_complete() -> None:
    assert set(options_of(Augment)) == {field.name for field in fields(Augment)}
    assert len(fields(Augment)) == 8
