"""Augmentation of whole batches, on the device of the batch; normalization comes last.

All geometric augmentations (mirror, shift, zoom, blur, low resolution) act on rows and columns
separately. Per image they are one matrix for the rows and one for the columns:

    out = R · image · Cᵀ

These are two batched matrix products, whatever is switched on. Random numbers are drawn on the CPU
from one seed, so that a seed gives the same augmentation on every device.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data.landmarks import mirrored
from data.options import CountOrZero, Share, ShareBelowOne
from data.to_device import to_device

DOWN_MODES = ("area", "bilinear", "bicubic")
UP_MODES = ("nearest", "bilinear", "bicubic")
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augment:
    """Which augmentations an image gets; AdaFace has 0.2 for crop, photometric, low_resolution."""

    flip: Share = 0.5
    """Probability of mirroring."""
    shift: CountOrZero = 0
    """Largest shift in pixels, in each direction. Edges are repeated."""
    zoom: ShareBelowOne = 0.0
    """Largest change of the scale: an image is scaled by a factor from 1 − zoom to 1 + zoom."""
    crop: Share = 0.0
    """Probability that the pixels outside a random rectangle become black. The rectangle has 20 to
    100 % of the area."""
    photometric: Share = 0.0
    """Probability that brightness, contrast and saturation change by factors from 0.5 to 1.5."""
    low_resolution: Share = 0.0
    """Probability that an image is shrunk to 20 to 100 % of its side and enlarged again."""
    blur: Share = 0.0
    """Probability of a Gaussian blur of σ from 0.2 to 2 pixels."""
    gray: Share = 0.0
    """Probability that an image becomes gray."""

    def for_size(self, size: int, full: int) -> "Augment":
        """The same for images of `size` pixels, where `shift` is in pixels of images of `full`."""
        return replace(self, shift=round(self.shift * size / full))


def normalize(images: Tensor) -> Tensor:
    """uint8 or float (B,3,H,W) in 0…255 -> float32 (x/255 − 0.5)/0.5."""
    return images.to(torch.float32) / 127.5 - 1


def augment(images: Tensor, options: Augment, seed: int) -> Tensor:
    """uint8 (B,3,H,W) -> float32 (B,3,H,W), augmented and normalized.

    A seed gives the same result on every device.
    """
    rng = torch.Generator().manual_seed(seed)
    count, _, height, width = images.shape
    device = images.device

    # Mirror, shift and zoom are one matrix for rows and one for columns. A mirror alone needs none.
    flipped, scale, moves = _placement(count, options, rng)
    if options.shift or options.zoom:
        rows = place_matrix(height, shift=moves[0], scale=scale)
        columns = place_matrix(width, shift=moves[1], scale=scale)
        columns = torch.where(flipped[:, None, None], columns.flip(2), columns)
        pixels = resample(images.float(), to_device(rows, device), to_device(columns, device))
    else:
        chosen = to_device(flipped, device)[:, None, None, None]
        pixels = torch.where(chosen, images.flip(3), images).float()

    if options.crop:
        mask = crop_mask(count, height, width, options.crop, rng)
        pixels = pixels * to_device(mask, device)

    # Low resolution and blur are matrices, too, but only for the images that drew one of them.
    if options.low_resolution or options.blur:
        chosen, rows, columns = _soften(count, height, width, options, rng)
        if len(chosen):
            chosen = to_device(chosen, device)
            rows, columns = to_device(rows, device), to_device(columns, device)
            softened = resample(pixels[chosen], rows, columns)
            pixels[chosen] = softened.clamp_(0, 255)

    # Colors change pixel by pixel, without matrices.
    if options.photometric or options.gray:
        pixels = recolor(pixels, *to_device(_color_factors(count, options, rng), device))
    return normalize(pixels)


def _placement(count: int, options: Augment, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """flipped bool (B,), scale float (B,), and moves float (2,B) of rows and columns in pixels."""
    flipped = torch.rand(count, generator=rng) < options.flip
    if not options.shift and not options.zoom:
        return flipped, torch.ones(count), torch.zeros(2, count)
    scale = 1 + options.zoom * (2 * torch.rand(count, generator=rng) - 1)
    moves = torch.randint(-options.shift, options.shift + 1, (2, count), generator=rng).float()
    return flipped, scale, moves


def augment_landmarks(landmarks: Tensor, options: Augment, seed: int, size: int) -> Tensor:
    """Where the landmarks float32 (B,5,2) lie after `augment` of their images of `size` pixels.

    All of it is on the CPU. Only mirror, shift and zoom move a landmark.
    """
    rng = torch.Generator().manual_seed(seed)
    flipped, scale, moves = _placement(len(landmarks), options, rng)
    points = torch.where(flipped[:, None, None], mirrored(landmarks), landmarks)
    columns_first = moves.flip(0).T[:, None] / size
    return 0.5 + (points - 0.5) * scale[:, None, None] + columns_first


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """R · image · Cᵀ of images float (B,3,H,W), with R = rows (B,H,H) and C = columns (B,W,W).

    Line i of R holds the weights of the input's rows in row i of the output. C does the same for
    columns.
    """
    return rows[:, None] @ images @ columns.transpose(1, 2)[:, None]


def place_matrix(size: int, *, shift: Tensor, scale: Tensor) -> Tensor:
    """(B,size,size): scales by `scale` (B,) about the middle, then moves by `shift` (B,) pixels.

    Sampling is bilinear, and edges are repeated.
    """
    middle = (size - 1) / 2

    # The place of each output pixel in the input; a place outside is moved to the edge.
    source = (torch.arange(size) - middle - shift[:, None]) / scale[:, None] + middle
    source = source.clamp(0, size - 1)

    # Bilinear weights are 1 − distance, for the two pixels nearer than 1.
    return (1 - (source[:, :, None] - torch.arange(size)).abs()).clamp_(min=0)


def blur_matrix(size: int, sigma: Tensor) -> Tensor:
    """(B,size,size): Gaussian blur of `sigma` (B,) pixels; edges are repeated."""
    # Weights (B, 2r+1), cut off at three times the largest sigma.
    radius = int(3 * sigma.max().item()) + 1
    taps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-(taps**2) / (2 * sigma[:, None] ** 2))
    weights = weights / weights.sum(1, keepdim=True)

    # Taps beyond an edge add their weight to the edge's pixel.
    source = (torch.arange(size)[:, None] + taps).clamp(0, size - 1)
    matrix = torch.zeros(len(sigma), size, size)
    places = source.expand(len(sigma), -1, -1)
    return matrix.scatter_add_(2, places, weights[:, None].expand(-1, size, -1))


def shrink_matrix(size: int, small: int, down: str, up: str) -> Tensor:
    """(size,size): to `small` pixels by mode `down` and back by mode `up` of F.interpolate."""
    # The identity's rows, interpolated, are the interpolation's matrix.
    shrunk = F.interpolate(torch.eye(size)[None, None], size=(small, size), mode=down)[0, 0]
    return F.interpolate(torch.eye(small)[None, None], size=(size, small), mode=up)[0, 0] @ shrunk


def _soften(
    count: int, height: int, width: int, options: Augment, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """chosen (K,), rows (K,H,H), columns (K,W,W): low resolution, then blur.

    `chosen` are the places in the batch of the images that drew one of them.
    """
    # All random numbers come first, so that their count never depends on an earlier draw.
    low = torch.rand(count, generator=rng) < options.low_resolution
    blurred = torch.rand(count, generator=rng) < options.blur
    ratio = 0.2 + 0.8 * torch.rand(count, generator=rng)
    modes = torch.randint(3, (2, count), generator=rng).tolist()
    sigma = 0.2 + 1.8 * torch.rand(count, generator=rng)

    chosen = torch.nonzero(low | blurred)[:, 0]
    both = []
    for size in (height, width):
        # The identity, unless the image drew low resolution.
        matrices = torch.eye(size).repeat(len(chosen), 1, 1)
        for row, image in enumerate(chosen.tolist()):
            if low[image]:
                down, up = DOWN_MODES[modes[0][image]], UP_MODES[modes[1][image]]
                matrices[row] = shrink_matrix(size, max(1, int(ratio[image] * size)), down, up)

        # Blur comes second, so its matrix stands on the left.
        soft = blurred[chosen]
        if soft.any():
            matrices[soft] = blur_matrix(size, sigma[chosen][soft]) @ matrices[soft]
        both.append(matrices)
    return chosen, both[0], both[1]


def crop_mask(
    count: int, height: int, width: int, probability: float, rng: torch.Generator
) -> Tensor:
    """float (B,1,H,W): 0 outside a random rectangle, 1 inside; 1 where none was drawn.

    The rectangle has 20 to 100 % of the area, and an aspect ratio from 3/4 to 4/3.
    """
    # The sides follow from the area and the aspect ratio, whose logarithm is uniform.
    area = (0.2 + 0.8 * torch.rand(count, generator=rng)) * height * width
    aspect = torch.exp((2 * torch.rand(count, generator=rng) - 1) * math.log(4 / 3))
    tall = (area / aspect).sqrt().round().clamp(max=height)
    wide = (area * aspect).sqrt().round().clamp(max=width)

    # A place at which the rectangle fits.
    top = ((height + 1 - tall) * torch.rand(count, generator=rng)).floor()
    left = ((width + 1 - wide) * torch.rand(count, generator=rng)).floor()
    kept = torch.rand(count, generator=rng) >= probability

    # A pixel is inside if its row and its column are.
    y, x = torch.arange(height), torch.arange(width)
    inside_y = (y >= top[:, None]) & (y < (top + tall)[:, None])
    inside_x = (x >= left[:, None]) & (x < (left + wide)[:, None])
    mask = (inside_y[:, :, None] & inside_x[:, None, :]) | kept[:, None, None]
    return mask[:, None].float()


def _color_factors(count: int, options: Augment, rng: torch.Generator) -> Tensor:
    """(3,B): factors of brightness, contrast and saturation. 1 changes nothing."""
    chosen = torch.rand(count, generator=rng) < options.photometric
    factors = torch.where(chosen, 0.5 + torch.rand(3, count, generator=rng), torch.ones(()))
    gray = torch.rand(count, generator=rng) < options.gray
    factors[2] = torch.where(gray, torch.zeros(()), factors[2])
    return factors


def recolor(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Pixels (B,3,H,W) changed by factors (B,), clipped to 0…255 after each of the three.

    Contrast spreads about the image's mean gray, saturation about each pixel's own gray.
    """
    per_image = (len(pixels), 1, 1, 1)

    # Brightness.
    pixels = (pixels * brightness.view(per_image)).clamp_(0, 255)

    # Contrast: lerp goes from the mean gray to the pixel by the factor, and beyond it above 1.
    mean = _gray(pixels).mean((2, 3), keepdim=True)
    pixels = torch.lerp(mean, pixels, contrast.view(per_image)).clamp_(0, 255)

    # Saturation.
    return torch.lerp(_gray(pixels), pixels, saturation.view(per_image)).clamp_(0, 255)


def _gray(pixels: Tensor) -> Tensor:
    """(B,1,H,W) luma by ITU-R 601."""
    weights = to_device(torch.tensor(LUMA), pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)
