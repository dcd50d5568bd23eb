"""Classifiers: one file each, which is the only place that knows its name and its needs.

A classifier's module exports `build(…) -> Classifier` and `FACTS`, a `ClassifierFacts`: what the
config check, the run and the memory planner must know before a classifier is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from data.loader import Loader
from data.order import named_order
from data.types import FaceSet
from recognition.config import Config

Overrides = list[str]
"""`section.key=value` texts, as on the command line."""


class Classifier(Protocol):
    """What the training loop asks of a classifier, which is an nn.Module.

    rows: the classes whose centers this rank holds; range(0) where it holds no centers.
    row_state: names of the entries of `state_dict` that have one row per center. Every class has
        the same number of centers, in consecutive rows. When a run resumes on another number of
        ranks, these rows are divided anew. All other state must be equal on every rank.
    """

    rows: range
    row_state: tuple[str, ...]

    def __call__(
        self,
        backbone: Callable[..., torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mean loss of the global batch, a scalar.

        sample: that of the batch, if the classifier's loader draws one.
        """

    def before_step(self, lr: float) -> None:
        """Called before the forward passes of each optimizer step, with its learning rate."""

    def own_gradients(self) -> list[torch.Tensor]:
        """The step's gradients of centers that the run's optimizer does not know, scaled or not.

        A step with gradients that are not finite is skipped.
        """

    def after_step(self, taken: torch.Tensor) -> None:
        """Called after each optimizer step.

        taken (bool, scalar on the device): False if the step was skipped. Nothing may be left of
        such a step, and a branch on `taken` would wait for the device.
        """

    def state_dict(self) -> dict[str, Any]:
        """As in nn.Module."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """As in nn.Module."""


@dataclass(frozen=True)
class Sizes:
    """What the memory of one rank depends on, besides the config."""

    classes: int
    """Identities of the training set."""
    ranks: int
    """Processes of the run."""
    embedding: int
    """Numbers per embedding."""
    backbone_bytes: int
    """Bytes of the backbone's float32 weights."""
    optimizer_states: int
    """Numbers that the run's optimizer keeps per weight."""
    device: str
    """`cpu` or `cuda`."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a classifier needs on one rank."""

    kept: dict[str, int]
    """What exists during the whole run, by the name that the planner prints."""
    chunk: int
    """Logits of one chunk. In the backward pass they exist besides the backbone's activations."""
    step: int = 0
    """Temporary tensors of the optimizer step."""


def ordinary_loader(faces: FaceSet, config: Config, *, batch_size: int, **loader: Any) -> Loader:
    """A Loader of batches as `data.order` names them. loader: options of `Loader`."""
    order = named_order(
        faces.labels,
        config.data.order,
        seed=config.run.seed,
        batch_size=batch_size,
        blocks=getattr(faces, "blocks", None),
    )
    return Loader(faces, batch_size=batch_size, order=order, **loader)


def refuse_teacher_centers(config: Config) -> None:
    """Raise ValueError where a teacher asks a classifier without class centers for some."""
    teacher = config.teacher
    if teacher.given and (teacher.centers or not teacher.classifier):
        raise ValueError(
            f"teacher.centers: found {teacher.centers:g} with teacher.classifier="
            f"{teacher.classifier}, expected 0 and true, because the "
            f"{config.classifier.name} classifier has no class centers; use teacher.cosine"
        )


@dataclass(frozen=True)
class Work:
    """What a classifier computes in one micro-batch on one rank."""

    samples: int
    """Embeddings, of all ranks, that are compared with the centers."""
    rows: int
    """Centers that they are compared with."""
    trained: bool = True
    """Whether the optimizer step moves these centers."""
    gallery_images: int = 0
    """Images that go through a second network of the backbone's size, without a backward pass."""


def every_class(config: Config, sizes: Sizes) -> Work:
    """The work of a classifier that has a center per class."""
    return Work(config.optim.batch_size * sizes.ranks, -(-sizes.classes // sizes.ranks))


@dataclass(frozen=True)
class ClassifierFacts:
    """What a classifier's module says about itself before one is built."""

    memory: Callable[[Config, Sizes], Memory]
    """What the classifier needs. Raises ValueError for sizes that a run would refuse."""
    check: Callable[[Config], None] = lambda config: None
    """Raises ValueError, one sentence that names the key, for a config that can't be trained."""
    trained_images: Callable[[Config], int] = lambda config: config.optim.batch_size
    """Images per micro-batch whose activations the backward pass needs."""
    work: Callable[[Config, Sizes], Work] = every_class
    """What the classifier computes, for the planner's time."""
    images_per_epoch: Callable[[int], int] = lambda images: images
    """Images that an epoch shows of a set with this many."""
    lighter: Callable[[Config], list[Overrides]] = lambda config: []
    """Settings of this classifier that need less memory and train nearly the same."""
    instead: Callable[[Config], list[Overrides]] = lambda config: []
    """Settings that replace any classifier by this one, need less memory, and train differently."""
    make_loader: Callable[..., Loader] = ordinary_loader
    """(faces, config, **options of `data.loader.Loader`) -> a loader of the batches that the
    classifier needs."""
