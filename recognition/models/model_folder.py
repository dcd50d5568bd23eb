"""A model folder: what a person copies, uploads to a hub, and gives to `--model`.

    model.safetensors   the weights of the backbone, by their names in its state dict
    model.json          the `ModelFacts`: architecture, size, color, normalization, precision
    README.md           the model card

No part of it is executed when it is read.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from data.files import new_folder, read_file
from recognition.models.facts import ModelFacts, facts_json, parse_facts

WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"
_MOST_FACTS_BYTES = 1 << 20


def write_model_folder(
    folder: Path, facts: ModelFacts, state: Mapping[str, torch.Tensor], card: str
) -> None:
    """Write a model folder, whole or not at all.

    state: the state dict of the backbone. card: the text of README.md, Markdown. Raises
    FileExistsError if something with the name of the folder is there already.
    """
    with new_folder(folder) as partial:
        write_model(partial, facts, state)
        (partial / CARD).write_text(card, encoding="utf-8")


def write_model(folder: Path, facts: ModelFacts, state: Mapping[str, torch.Tensor]) -> None:
    """Write a model folder's weights and facts into a folder that is there."""
    (folder / FACTS).write_text(facts_json(facts), encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors makes a file that nobody else may read.
    (folder / WEIGHTS).chmod((folder / FACTS).stat().st_mode)


def read_facts(folder: Path) -> ModelFacts:
    """The facts in the model.json of a model folder; ValueError where they can't be used."""
    path = folder / FACTS
    return parse_facts(read_file(path, _MOST_FACTS_BYTES), str(path))
