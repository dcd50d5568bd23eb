"""What a run starts from: trained weights, and class centers at the means of their images."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.read_image import BadImage, read_pixels
from data.types import FaceSet
from recognition.classifiers import Classifier
from recognition.config import Config, InitConfig
from recognition.distributed import Ranks
from recognition.models.facts import ModelFacts, Normalization
from recognition.models.load import load_model
from recognition.name_patterns import match_names
from recognition.optimizer import CENTERS, factors_of

log = logging.getLogger(__name__)
SLICE = 1 << 16  # images whose embeddings are in memory at a time
NAMED = 3  # names in a line
Embed = Callable[[Sequence[int]], np.ndarray]
"""Numbers of images -> their embeddings float32 (N,D), the same on all ranks.

A BadImage for an image that can't be read or decoded."""


@dataclass(frozen=True)
class Weights:
    """A trained model's tensors by name, and what is known of it."""

    source: str
    state: Mapping[str, torch.Tensor]
    facts: ModelFacts

    def digest(self) -> bytes:
        """A hash of all names and tensors."""
        digest = hashlib.sha256()
        for name, tensor in self.state.items():
            digest.update(name.encode())
            raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
        return digest.digest()


def read_weights(init: InitConfig) -> Weights | None:
    """The model that `init.weights` names, on the CPU; None for random weights.

    Raises OSError, or a ValueError that says what is wrong with it.
    """
    if init.weights is None:
        return None
    try:
        model = load_model(init.weights, color=init.color, device="cpu")
    except ValueError as error:  # it names the option of the commands
        raise ValueError(str(error).replace("--color ", "init.color=")) from None
    state = model.network.state_dict()
    if not state:
        raise ValueError(
            f"{init.weights}: an ONNX file has no weights that can be trained; give a .pt file"
        )
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{init.weights}: {bad[0]} holds NaN or infinity; use another checkpoint")
    return Weights(init.weights, state, model.facts)


def load_weights(backbone: nn.Module, weights: Weights, config: Config) -> str:
    """Copy trained weights into the backbone, and return a line about what was copied.

    Every name and shape must be equal, except for what `init.skip` names. Raises ValueError if
    another one is not.
    """
    own, given, skip = backbone.state_dict(), weights.state, config.init.skip
    every = list(dict.fromkeys([*own, *given]))
    skipped = {name for some in match_names(skip, every, "init.skip").values() for name in some}
    wrong = [
        f"{name} {_shape(given, name)}, here {_shape(own, name)}"
        for name in every
        if name not in skipped and _shape(own, name) != _shape(given, name)
    ]
    if wrong:
        raise ValueError(
            f"init.weights: {weights.source} does not fit: {_some(wrong)} (of {len(every)}); give "
            f"its {_other_keys(config, weights.facts)}, or name in init.skip what is to start anew"
        )
    loaded = [name for name in own if name not in skipped]
    for name in loaded:
        # Normalizations of timm's networks are tensors of the model and options of its backbone.
        if config.backbone.options.get(name) is not None and not torch.equal(
            own[name].cpu(), given[name]
        ):
            raise ValueError(
                f"init.weights: {weights.source} has the {name} {given[name].flatten().tolist()}; "
                f"leave out backbone.{name}, or set init.skip=[{name}] to keep your own"
            )
    bgr = weights.facts.color == "bgr"
    if bgr != config.backbone.options.get("bgr", False):
        raise ValueError(
            f"init.weights: {weights.source} was trained on {weights.facts.color.upper()}; set "
            f"backbone.bgr={str(bgr).lower()}"
        )
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(given[name])
    numbers = sum(own[name].numel() for name in loaded)
    count = "all" if len(loaded) == len(own) else f"{len(loaded)} of"
    line = f"{count} {len(own)} tensors loaded ({numbers:,} numbers)"
    if anew := [name for name in own if name in skipped]:
        line += f"; not loaded, as init.skip says: {_some(anew)}"
    if unused := [name for name in given if name not in own]:
        line += f"; not used: {_some(unused)}"
    if weights.facts.size != config.data.size:
        line += f"; made for {weights.facts.size} pixels, and data.size is {config.data.size}"
    if weights.facts.normalization != Normalization():
        line += f"; made for pixels {weights.facts.normalization}, and a run takes ±1"
    return f"init.weights: {weights.source}: {line}"


def _other_keys(config: Config, facts: ModelFacts) -> str:
    """The keys of the model's architecture and size that the config has otherwise."""
    own, given = config.backbone, facts.architecture
    keys: dict[str, object] = {}
    if facts.size != config.data.size:
        keys["data.size"] = facts.size
    if own.name != given.name:
        keys["backbone.name"] = given.name
    for name, value in given.options.items():
        if own.options.get(name) != value:
            keys[f"backbone.{name}"] = value
    return " ".join(f"{key}={value}" for key, value in keys.items()) or "backbone"


def _shape(state: Mapping[str, torch.Tensor], name: str) -> str:
    return "×".join(map(str, state[name].shape)) or "1" if name in state else "missing"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_centers(config: Config, classifier: Classifier) -> None:
    """Raise ValueError for keys about centers that do not suit the classifier.

    It may have none. It may have several per class, which would stay together if all of them
    started at the mean.
    """
    means, name = config.init.centers == "means", config.classifier.name
    keys = {"init.centers": means, "optim.lr_factors.centers": CENTERS in factors_of(config.optim)}
    for key in [key for key, found in keys.items() if found and not classifier.row_state]:
        raise ValueError(f"{key}: the {name} classifier has no centers; leave this key out")
    if means and len(_centers(classifier)) != len(classifier.rows):
        raise ValueError(
            "init.centers: found 'means' with several centers per class; use random, or "
            "classifier.sub_centers=1"
        )


def set_centers(classifier: Classifier, faces: FaceSet, embed: Embed, ranks: Ranks) -> str:
    """Set each center to the mean direction of its class's embeddings; returns a line about it.

    All ranks call it. A center has length 1. One whose class has no readable image keeps its random
    direction. Raises the BadImage of `embed` if no image of a slice can be read.
    """
    centers, rows = _centers(classifier), classifier.rows
    sums = torch.zeros(centers.shape)
    for indices, found in embedded(faces, embed, ranks, "init.centers"):
        labels = torch.from_numpy(faces.labels[np.asarray(indices)])
        held = (labels >= rows.start) & (labels < rows.stop)
        sums.index_add_(0, labels[held] - rows.start, F.normalize(found[held]))
    seen = sums.norm(dim=1) > 0
    with torch.no_grad():
        centers.copy_(F.normalize(torch.where(seen[:, None], sums, centers.cpu())))
    people = int(ranks.all_reduce_sum(seen.sum().to(centers.device)))
    return f"init.centers: the mean embeddings of {people} of {faces.num_classes} people"


def _centers(classifier: Classifier) -> torch.Tensor:
    """The centers that this rank holds (C_local K, D), which training changes."""
    found: torch.Tensor = classifier.state_dict()[classifier.row_state[0]]
    return found


def embedded(
    faces: FaceSet, embed: Embed, ranks: Ranks, key: str, *, first: int = 0, at_once: int = SLICE
) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
    """Numbers of images and their embeddings, slice by slice, from the image `first` on.

    Images that can't be read or decoded are left out and logged, as in training. key: the key of a
    config for which the images are embedded. at_once: images of a slice.
    """
    for begin in range(first, len(faces), at_once):
        indices: Sequence[int] = range(begin, min(begin + at_once, len(faces)))
        try:
            found = embed(indices)
        except BadImage:
            readable = [index for index in indices if _readable(faces, index, ranks, key)]
            if len(readable) in (0, len(indices)):
                raise
            indices, found = readable, embed(readable)
        yield indices, torch.from_numpy(found)


def _readable(faces: FaceSet, index: int, ranks: Ranks, key: str) -> bool:
    try:
        read_pixels(faces, index)
    except BadImage as error:
        if ranks.rank == 0:
            log.warning("%s: left out %s", key, error)
        return False
    return True
