"""What a teacher adds to a training step: the memory and the work of its losses."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from recognition.classifiers import Sizes
from recognition.config import Config, ConfigError, TeacherConfig
from recognition.models.load import load_model
from recognition.models.onnx_file import ONNX
from tools._backbone import trace

# A forward pass without gradient writes each activation and reads it once.
FORWARD_PASSES = 2


@dataclass(frozen=True)
class TeacherNeed:
    """Bytes and work on one rank; zeros for a run without a teacher.

    kept: bytes that exist during the whole run, by the name that the planner prints. forward: bytes
    of its forward pass, before that of the backbone. multiply_adds and moved (bytes): of its
    forward pass of a micro-batch, in `precision`. rows: class centers that are compared with the
    embeddings.
    """

    kept: dict[str, int]
    forward: int = 0
    multiply_adds: float = 0.0
    moved: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    rows: int = 0
    width: int = 0


def teacher_need(config: Config, sizes: Sizes, images: int) -> TeacherNeed:
    """What the teacher of a config needs; images: those of a micro-batch that the backbone sees.

    A foreign ONNX file counts with its size, and without the work of its graph, which is not known.
    Raises ConfigError for a model or a file that can't be read.
    """
    teacher = config.teacher
    if not teacher.given:
        return TeacherNeed({})
    try:
        width, weights = _measured(teacher)
    except (OSError, ValueError) as error:
        raise ConfigError(f"teacher: {error}") from None
    rows = -(-sizes.classes // sizes.ranks) if teacher.centers else 0
    linear = sizes.embedding * width if width != sizes.embedding else 0
    kept = {
        "teacher's centers": 4 * rows * width,
        "teacher's linear map": 4 * linear * (2 + sizes.optimizer_states),
    }
    if not teacher.augmented:
        return TeacherNeed(_found(kept), rows=rows, width=width)
    model = load_model(str(teacher.model), color=teacher.color, device="cpu")
    kept["teacher's weights"] = weights
    pixels = 4 * images * 3 * model.size**2
    if model.architecture.name == ONNX:
        return TeacherNeed(_found(kept), pixels, rows=rows, width=width)
    net = trace(model.architecture, images, model.size, model.facts.precision)
    return TeacherNeed(
        _found(kept),
        forward=2 * pixels + 2 * max(net.activations),
        multiply_adds=net.multiply_adds,
        moved=FORWARD_PASSES * sum(net.activations),
        precision=model.facts.precision,
        rows=rows,
        width=width,
    )


def _found(kept: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in kept.items() if count}


@cache
def _measured(teacher: TeacherConfig) -> tuple[int, int]:
    """Numbers per embedding of a teacher, and bytes of its weights."""
    if teacher.model is None:
        return int(np.load(str(teacher.vectors), mmap_mode="r", allow_pickle=False).shape[1]), 0
    model = load_model(teacher.model, color=teacher.color, device="cpu")
    weights = sum(p.nbytes for p in model.network.parameters())
    file = Path(str(model.weights))
    pixels = np.zeros((model.size, model.size, 3), np.uint8)
    return model.embed([pixels]).shape[1], weights or file.stat().st_size
