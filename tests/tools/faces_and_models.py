"""Photos, crops and small models for the tests of the tools that compare faces."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch

from recognition.checkpoint import save_tensors
from recognition.models.model import build_backbone
from recognition.parse import load_config, to_yaml
from tests.photographs import photograph

ROOT = Path(__file__).parents[2]
SIZE = 64


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """A file with uint8 (H,W,3) RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[:, :, ::-1])
    return path


def crop(seed: int) -> np.ndarray:
    """uint8 (SIZE,SIZE,3): a smooth pattern, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))


def portrait() -> np.ndarray:
    """A photo that shows one face."""
    return photograph("astronaut")[:300, 60:400]


def write_run(folder: Path, seed: int = 0) -> Path:
    """The folder of a run whose model is untrained, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = ["run.precision=fp32", "run.device=cpu", f"data.size={SIZE}"]
    config = load_config(ROOT / "configs/quickstart.yaml", settings)
    torch.manual_seed(seed)
    (folder / "config.yaml").write_text(to_yaml(config))
    save_tensors(folder / "model.pt", build_backbone(config).state_dict())
    return folder


def write_evaluation(folder: Path, low: float, threshold: float, high: float) -> None:
    """A results.json as `python -m eval pairs --out` writes it, with this threshold."""
    metrics = {
        "cosine@0.001": threshold,
        "cosine_low@0.001": low,
        "cosine_high@0.001": high,
        "false_same@0.001": 0.0,
        "false_different@0.001": 2.5,
    }
    settings = {"pairs": 6000, "genuine": 3000, "mirror": True}
    result = {"name": "lfw", "protocol": "pairs", "metrics": metrics, "settings": settings}
    (folder / "results.json").write_text(json.dumps({"results": [result]}))
