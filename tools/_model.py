"""The options with which every command takes a model."""

from dataclasses import dataclass
from typing import Literal

import recognition
from recognition.device import allow_tf32
from recognition.models.facts import Color
from recognition.models.model import Model


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs; a parameter of this type gives a command these options."""

    model: str | None = None
    """Run folder, model folder, or file of weights: .pt, .pth, .ckpt, .safetensors or .onnx."""
    color: Color | None = None
    """Order of the color channels that the weights were trained on, if their file does not say it.
    The images are RGB in any case."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs."""
    landmarks: Literal["template"] | None = None
    """template: a network that needs the landmarks of each image takes those of the ArcFace
    template instead. They are right for exactly aligned crops."""

    def load(self) -> Model:
        """The model; ValueError or OSError in one line where it can't be loaded."""
        if self.model is None:
            raise ValueError("give --model, a run folder, a model folder or a file of weights")
        model = recognition.load(
            self.model, color=self.color, device=self.device, landmarks=self.landmarks
        )
        if model.device.type == "cuda":  # as in the run that evaluated it
            allow_tf32(model.facts.precision != "fp32")
        return model
