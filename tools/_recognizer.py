"""A model that compares faces, with what its evaluation says about cosines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.embed import Model, ModelRun, Progress, embed_faces, normalized, not_shown
from eval.extract import file_digest
from eval.verdict import Evaluation, read_evaluation
from tools._faces import FaceImages, FaceIn
from tools._model import ModelOptions

OWN_WEIGHTS = ("model.pt", "model.safetensors", "model.onnx")
"""How this project calls the weights in the folder of a run or of a model."""


@dataclass(frozen=True)
class Recognizer:
    """A model and its evaluation.

    size: side of its input in pixels. digest: differs between models. evaluation: what cosines of
    this model mean, or None; then `unknown` says why.
    """

    embed: Model
    size: int
    digest: str
    evaluation: Evaluation | None
    unknown: str

    @property
    def mirror(self) -> bool:
        """Whether embeddings of mirror images are added: as in the evaluation, otherwise yes."""
        return self.evaluation.mirror if self.evaluation else True

    def vectors(self, faces: Sequence[FaceIn], progress: Progress = not_shown) -> np.ndarray:
        """Embeddings float32 (N,D) of length 1."""
        images = FaceImages(faces)
        run = ModelRun(self.embed, progress=progress)
        return normalized(embed_faces(run, images, self.size, mirror=self.mirror, crop=images.crop))


def open_recognizer(source: ModelOptions, evaluation: Path | None = None) -> Recognizer:
    """The model, with the results.json in `evaluation`, or else in the model's own folder.

    A published file of weights has no folder of its own: beside it may lie anything.
    """
    model = source.load()
    assert model.weights is not None
    folder = model.weights.parent
    own = model.weights.name in OWN_WEIGHTS or Path(source.model or "").is_dir()
    found, unknown = None, f"{model.weights} has no evaluation of its own; give --evaluation FOLDER"
    if evaluation or own:
        found, unknown = read_evaluation(evaluation or folder)
    digest = f"{file_digest(model.weights)} {model.color}"
    return Recognizer(model, model.size, digest, found, unknown)
