"""A model that compares faces, with what its evaluation says about cosines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import file_digest
from eval.embed import Model, ModelRun, Progress, embed_faces, normalized, not_shown
from eval.verdict import Evaluation, read_evaluation
from tools._faces import FaceImages, FaceIn
from tools._model import ModelOptions
from tools._model_record import TRAINING


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
        return normalized(
            embed_faces(
                run,
                images,
                self.size,
                mirror=self.mirror,
                crop=images.crop,
                landmarks=lambda: images.landmarks_in(self.size),
            )
        )


def open_recognizer(source: ModelOptions, evaluation: Path | None = None) -> Recognizer:
    """The model, with the results.json in `evaluation`, or else in the model's own folder.

    The folder of a single file of weights is not the model's own: it may hold anything.
    """
    model = source.load()
    assert model.weights is not None
    folder = model.weights.parent
    own = any((folder / name).is_file() for name in ("config.yaml", "model.json", TRAINING))
    found, unknown = None, f"{model.weights} has no evaluation of its own; give --evaluation FOLDER"
    if evaluation or own:
        found, unknown = read_evaluation(evaluation or folder)
    digest = f"{file_digest(model.weights)} {model.color}{source.landmarks or ''}"
    return Recognizer(model, model.size, digest, found, unknown)
