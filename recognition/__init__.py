"""Training: backbones, margin heads, classifiers, the trainer, and the run that joins them.

`recognition.load` gives a trained model, from a run or from any published form.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from recognition.models.model import Model


def load(
    source: "str | Path",
    *,
    color: Literal["rgb", "bgr"] | None = None,
    device: str = "auto",
    landmarks: Literal["template"] | None = None,
) -> "Model":
    """The model in a run folder, a model folder or a file of weights, ready to embed faces.

    source: a run folder; a model folder; a .pt, .pth, .ckpt, .bin or .safetensors of arcface_torch,
    AdaFace, CVLface, FastFace or F²C; an .onnx; or a folder with one such file. color: the order of
    the color channels that the weights were trained on, where the source does not say it. device:
    auto, cpu, cuda or mps. landmarks: template makes a network that needs the landmarks of each
    image take those of the ArcFace template instead.

    The model has `embed(images)`, and the attributes `size`, `color`, `normalization` and
    `architecture`. Raises FileNotFoundError, or a ValueError of one line that says what was found
    and what to do.
    """
    from recognition.models.load import load_model  # torch is imported only when it is needed

    return load_model(source, color=color, device=device, landmarks=landmarks)
