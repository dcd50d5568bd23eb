"""A trained network as a function from pictures to embeddings."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from data.decode import DecodeError, decode_any, resize_into
from data.files import read_file
from data.limits import MOST_IMAGE_BYTES
from data.parts import find_part
from recognition.backbones import needs_landmarks
from recognition.config import Config, Part
from recognition.device import autocast, lay_out
from recognition.freeze import evaluating
from recognition.models.facts import Color, ModelFacts, Normalization
from recognition.parse import build_part

BATCH = 64  # pictures that are embedded at a time on a CPU
CUDA_BATCH = 256
WEIGHTS = "weights"
"""Option of a backbone: what a new run starts from. A trained model does not need it."""

Images = torch.Tensor | Sequence[str | Path | np.ndarray]
Points = torch.Tensor | np.ndarray


class Model(nn.Module):
    """Embeds aligned face crops.

    network: float RGB (B,3,S,S), normalized -> (B,D). It lies on `device`, as `place_backbone` put
    it. weights: the file that its weights came from, or None for a network in training.
    """

    def __init__(
        self,
        network: nn.Module,
        facts: ModelFacts,
        device: torch.device,
        weights: Path | None = None,
    ) -> None:
        super().__init__()
        self.network, self.facts, self.weights, self._device = network, facts, weights, device

    @property
    def architecture(self) -> Part:
        """The backbone with its options; `Part("onnx")` for an ONNX file of another project."""
        return self.facts.architecture

    @property
    def size(self) -> int:
        """Side of the square input, in pixels."""
        return self.facts.size

    @property
    def color(self) -> Color:
        """Order of the channels that the weights were trained on; `embed` takes RGB in any case."""
        return self.facts.color

    @property
    def normalization(self) -> Normalization:
        """What becomes of the pixels before the network gets them."""
        return self.facts.normalization

    @property
    def needs_landmarks(self) -> bool:
        """Whether `embed` has to be given the landmarks of its images."""
        return needs_landmarks(self.network)

    @property
    def device(self) -> torch.device:
        """Where the network computes, and where embeddings are returned."""
        first = next(self.network.parameters(), None)
        return self._device if first is None else first.device

    def embed(self, images: Images, landmarks: Points | None = None) -> torch.Tensor:
        """Pictures of aligned faces to embeddings float32 (B,D), not normalized, on `device`.

        images: RGB (B,3,size,size) on any device, uint8 from 0 to 255 or float from 0 to 1. Or a
        list of files, and of arrays (H,W,3) RGB, uint8 or float in the same ranges. Square pictures
        in a list are resized to `size`. landmarks: for a model that needs them, (B,5,2), as shares
        of the side of each picture (data/landmarks.py).

        A list of any length needs no more memory than a batch. Raises ValueError for another shape,
        type or range, for a picture in a list that is not square, and for a file that can't be
        decoded. OSError for one that can't be read.
        """
        rows = CUDA_BATCH if self.device.type == "cuda" else BATCH
        if isinstance(images, torch.Tensor):
            batches: Iterator[torch.Tensor] = iter(images.split(rows) if len(images) else ())
        elif isinstance(images, (str, Path)) or not isinstance(images, Sequence):
            raise ValueError(
                f"embed: found {type(images).__name__}, expected a tensor (B,3,{self.size},"
                f"{self.size}) or a list of files or arrays"
            )
        else:
            starts = range(0, len(images), rows)
            batches = (self._stacked(images[at : at + rows]) for at in starts)
        points = self._points(landmarks, len(images))
        embedded = [
            self(batch, *(one[number * rows : (number + 1) * rows] for one in points))
            for number, batch in enumerate(batches)
        ]
        if not embedded:
            raise ValueError("embed: found no image, expected at least one")
        return torch.cat(embedded)

    def forward(self, images: torch.Tensor, *landmarks: torch.Tensor) -> torch.Tensor:
        """One batch of `embed`, as tensors."""
        return self.embed_pixels(self._pixels(images), *landmarks)

    def embed_pixels(self, pixels: torch.Tensor, *landmarks: torch.Tensor) -> torch.Tensor:
        """One batch (B,3,size,size) in values from 0 to 255, of which nothing is checked."""
        precision = autocast(self.device, self.facts.precision)
        with evaluating(self.network), torch.inference_mode(), precision:
            # On MPS a copy that does not block may read memory that is already reused.
            queued = self.device.type == "cuda"
            pixels = pixels.to(self.device, non_blocking=queued).to(torch.float32)
            mean, std = self.normalization.mean, self.normalization.std
            inputs = lay_out(pixels / std - mean / std, self.facts.channels_last)
            beside = (points.to(self.device, non_blocking=queued) for points in landmarks)
            return cast(torch.Tensor, self.network(inputs, *beside)).float()

    def _points(self, landmarks: Points | None, images: int) -> list[torch.Tensor]:
        """The landmarks in a list, after a check; no landmarks make an empty list."""
        if landmarks is None:
            if not self.needs_landmarks:
                return []
            raise ValueError(
                "embed: found no landmarks, which this model needs; give landmarks=, shares of the "
                "side (B,5,2), or load it with landmarks='template'"
            )
        if not self.needs_landmarks:
            raise ValueError("embed: found landmarks, which this model does not take")
        points = torch.as_tensor(landmarks, dtype=torch.float32)
        if points.shape != (images, 5, 2) or not points.isfinite().all():
            raise ValueError(
                f"embed: found landmarks of shape {tuple(points.shape)}, expected finite ones "
                f"({images},5,2)"
            )
        return [points]

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Images in values from 0 to 255, after a check of their shape, type and range."""
        if images.ndim != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"embed: found images of shape {tuple(images.shape)}, expected (B,3,{self.size},"
                f"{self.size})"
            )
        return _as_pixels(images, "embed")

    def _stacked(self, items: Sequence[str | Path | np.ndarray]) -> torch.Tensor:
        """A list of files and arrays as one float batch from 0 to 1, or uint8 if all of it is."""
        decoded = [self._square(item, f"embed: image {at}") for at, item in enumerate(items)]
        if any(image.dtype != np.uint8 for image in decoded):
            decoded = [
                image / np.float32(255) if image.dtype == np.uint8 else image for image in decoded
            ]
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)

    def _square(self, item: str | Path | np.ndarray, name: str) -> np.ndarray:
        """A picture (size,size,3), uint8 or float32."""
        if isinstance(item, (str, Path)):
            name = str(item)
            try:
                item = decode_any(read_file(item, MOST_IMAGE_BYTES))
            except DecodeError as error:
                raise ValueError(f"{name}: {error}") from None
        if not isinstance(item, np.ndarray) or item.ndim != 3 or item.shape[2] != 3:
            shape = f" of shape {item.shape}" if isinstance(item, np.ndarray) else ""
            raise ValueError(
                f"{name}: found {type(item).__name__}{shape}, expected the name of a file or an "
                "array (H,W,3)"
            )
        if item.shape[0] != item.shape[1]:
            raise ValueError(
                f"{name}: has {item.shape[1]}×{item.shape[0]} pixels, expected a square crop of an "
                "aligned face; python -m tools.align makes crops of photographs"
            )
        if item.dtype != np.uint8:
            _as_pixels(torch.from_numpy(item), name)
            item = item.astype(np.float32)
        out = np.empty((self.size, self.size, 3), item.dtype)
        resize_into(item, out)
        return out


def _as_pixels(images: torch.Tensor, name: str) -> torch.Tensor:
    """uint8 as it is, and float from 0 to 1 times 255. ValueError for anything else."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"{name}: found {images.dtype}, expected uint8 or float")
    low, high = (end.item() for end in images.aminmax()) if images.numel() else (0, 0)
    if not 0 <= low <= high <= 1:  # also if one of them is not a number
        raise ValueError(
            f"{name}: found floats from {low:g} to {high:g}, expected 0 to 1; values from 0 to 255 "
            "are given as uint8"
        )
    return images.to(torch.float32) * 255


def build_backbone(config: Config) -> nn.Module:
    """The backbone of a config, for its input size, on the default device."""
    backbone: nn.Module = build_part(
        "recognition.backbones", config.backbone, size=config.data.size
    )
    return backbone


def load_pretrained(backbone: nn.Module, config: Config) -> str | None:
    """Load the weights that the option `weights` of the backbone names, as a new run does.

    Returns a line about them; None if the backbone has no such option, or no weights are named.
    Raises OSError, or a ValueError that says what is wrong with them.
    """
    part = config.backbone
    weights = part.options.get(WEIGHTS)
    if weights is None:
        return None
    if config.init.weights is not None:
        raise ValueError(
            f"init.weights: found {config.init.weights!r} beside backbone.weights, {weights!r}; "
            "leave one of them out"
        )
    load = find_part("recognition.backbones", part.name).load_pretrained
    line: str = load(backbone, weights, part.options, config.data.size)
    return line


def facts_of(config: Config) -> ModelFacts:
    """What a config says of the model that its run trains."""
    options = {name: value for name, value in config.backbone.options.items() if name != WEIGHTS}
    return ModelFacts(
        architecture=Part(config.backbone.name, options),
        size=config.data.size,
        precision=config.run.precision,
        channels_last=config.run.channels_last,
    )
