"""A trained backbone as a function from images to embeddings, and how one is loaded from a run
folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from data.augment import normalize
from recognition.checkpoint import load_tensors
from recognition.config import Config
from recognition.device import autocast, choose_device, place_backbone
from recognition.parse import build_part, parse_config


@dataclass(frozen=True)
class Embedder:
    """A trained backbone as a function: uint8 (B,3,S,S) RGB -> float32 (B,D) embeddings, not
    normalized.

    size: S, the side of the input in pixels. precision: as `run.precision`.
    """

    backbone: nn.Module
    size: int
    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                batch = normalize(images.to(self.device, non_blocking=True))
                if self.channels_last:
                    batch = batch.contiguous(memory_format=torch.channels_last)
                return self.backbone(batch).float()
        finally:
            self.backbone.train(training)


def load_embedder(path: str | Path, device: str = "auto") -> tuple[Embedder, int]:
    """The model of a run folder (or of a model.pt that lies beside its config.yaml) and its input
    size in pixels.

    Raises FileNotFoundError or ValueError naming the file that is missing or not what it should be.
    """
    path = Path(path)
    folder, weights = (path, path / "model.pt") if path.is_dir() else (path.parent, path)
    for needed in (weights, folder / "config.yaml"):
        if not needed.exists():
            raise FileNotFoundError(
                f"{needed}: not found; --model takes a run folder with config.yaml and model.pt"
            )
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["run"]["device"] = device
    config = parse_config(tree, str(folder / "config.yaml"))
    on = choose_device(config, str(folder / "config.yaml"))
    backbone = build_backbone(config)
    try:
        backbone.load_state_dict(load_tensors(weights))
    except RuntimeError as error:
        raise ValueError(
            f"{weights}: not the weights of {config.backbone.name} in config.yaml: {error}"
        ) from None
    backbone = place_backbone(backbone, on, config.run.channels_last)
    embedder = Embedder(
        backbone, config.data.size, on, config.run.precision, config.run.channels_last
    )
    return embedder, config.data.size


def build_backbone(config: Config) -> nn.Module:
    """The backbone of a config, for its input size, on the default device."""
    return build_part("recognition.backbones", config.backbone, size=config.data.size)
