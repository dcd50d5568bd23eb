"""Classifiers: one file each, which is the only place that knows its name and its needs.

A classifier's module exports `build(…) -> Classifier` and `FACTS`, a `ClassifierFacts`: what the
config check, the run and the memory planner must know before a classifier is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from recognition.config import Config

if TYPE_CHECKING:
    from data.loader import Loader

Overrides = list[str]
"""`section.key=value` texts, as on the command line."""


class Classifier(Protocol):
    """What the training loop asks of a classifier, which is an nn.Module.

    rows: the classes whose centers this rank holds; range(0) where it holds no centers.
    row_state: names of the entries of `state_dict` that have one row per center. Every class has
        equally many centers, in consecutive rows. A checkpoint of other ranks is divided by them;
        all other state must be equal on every rank.
    """

    rows: range
    row_state: tuple[str, ...]

    def __call__(
        self, backbone: Callable[..., torch.Tensor], images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Mean loss of the global batch, a scalar."""

    def before_step(self, lr: float) -> None:
        """Called before the forward passes of each optimizer step, with its learning rate."""

    def after_step(self) -> None:
        """Called after each successful optimizer step."""

    def state_dict(self) -> dict[str, Any]:
        """As nn.Module has it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """As nn.Module has it."""


@dataclass(frozen=True)
class Sizes:
    """What the memory of one rank depends on beside the config."""

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
    """Logits of one chunk, which exist in the backward pass beside the backbone's activations."""
    step: int = 0
    """Temporary tensors of the optimizer step."""


@dataclass(frozen=True)
class ClassifierFacts:
    """What a classifier's module says about itself before one is built."""

    memory: Callable[[Config, Sizes], Memory]
    """What it needs. ValueError for sizes that a run would refuse."""
    check: Callable[[Config], None] = lambda config: None
    """ValueError, one sentence that names the key, for a config that it does not admit."""
    trained_images: Callable[[Config], int] = lambda config: config.optim.batch_size
    """Images per micro-batch whose activations the backward pass needs."""
    lighter: Callable[[Config], list[Overrides]] = lambda config: []
    """Settings of this classifier that need less memory and train nearly the same."""
    instead: Callable[[Config], list[Overrides]] = lambda config: []
    """Settings with this classifier that need less memory and train differently, in place of a
    config that has this classifier or any other."""
    make_loader: Callable[..., Loader] | None = None
    """(faces, config, **options of `data.loader.Loader`) -> a loader of the batches that it needs,
    in place of those that `data.order` names."""
