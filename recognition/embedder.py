"""A trained backbone as a function from images to embeddings, loaded from a run folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from data.augment import normalize
from recognition.checkpoint import load_tensors
from recognition.config import Config
from recognition.device import autocast, choose_device, lay_out, place_backbone
from recognition.freeze import evaluating
from recognition.parse import build_part, parse_config


@dataclass(frozen=True)
class Embedder:
    """Embeds uint8 (B,3,S,S) RGB images as float32 (B,D), not normalized.

    size: S, the side of the input in pixels. precision, channels_last: as in the config's `run`.
    """

    backbone: nn.Module
    size: int
    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        precision = autocast(self.device, self.precision)
        with evaluating(self.backbone), torch.inference_mode(), precision:
            # On MPS a copy that does not block may read memory that is already reused.
            queued = self.device.type == "cuda"
            pixels = normalize(images.to(self.device, non_blocking=queued))
            embeddings: torch.Tensor = self.backbone(lay_out(pixels, self.channels_last))
            return embeddings.float()


def embedder_of(config: Config, backbone: nn.Module, device: torch.device) -> Embedder:
    """The Embedder of a backbone that lies on `device` as `place_backbone` put it."""
    return Embedder(
        backbone, config.data.size, device, config.run.precision, config.run.channels_last
    )


def build_backbone(config: Config) -> nn.Module:
    """The backbone of a config, for its input size, on the default device."""
    backbone: nn.Module = build_part(
        "recognition.backbones", config.backbone, size=config.data.size
    )
    return backbone


def load_embedder(path: str | Path, device: str = "auto") -> tuple[Embedder, int]:
    """The model of a run folder and its input size in pixels.

    path: the run folder, or a model.pt that lies beside its config.yaml. Raises FileNotFoundError
    for a missing file, and ValueError for a file with other contents.
    """
    path = Path(path)
    folder, weights = (path, path / "model.pt") if path.is_dir() else (path.parent, path)
    written = folder / "config.yaml"
    for needed in (weights, written):
        if not needed.exists():
            raise FileNotFoundError(
                f"{needed}: not found; --model needs a run folder with config.yaml and model.pt"
            )
    try:
        tree = yaml.safe_load(written.read_bytes())
        tree["run"]["device"] = device
    except (ValueError, TypeError, KeyError, yaml.YAMLError):
        raise ValueError(
            f"{written}: empty or damaged; train.py --resume writes it anew, and so does train.py "
            "--print-config"
        ) from None
    config = parse_config(tree, str(written))
    chosen = choose_device(config, str(written))
    backbone = build_backbone(config)
    try:
        backbone.load_state_dict(load_tensors(weights))
    except RuntimeError as error:
        raise ValueError(
            f"{weights}: not the weights of {config.backbone.name} in config.yaml: {error}"
        ) from None
    backbone = place_backbone(backbone, chosen, config.run.channels_last)
    return embedder_of(config, backbone, chosen), config.data.size
