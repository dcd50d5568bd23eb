"""Loads a model from whatever a person has: a run, a model folder, or a published file."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from data.files import read_file
from recognition.config import ConfigError, Part
from recognition.device import kind_of_device, place_backbone
from recognition.lora import has_lora, merged
from recognition.models.facts import COLOR_UNKNOWN, Color, ModelFacts, Normalization
from recognition.models.model import Model, facts_of
from recognition.models.model_folder import FACTS, WEIGHTS, read_facts
from recognition.models.onnx_file import load_onnx
from recognition.models.recognize import (
    State,
    blank,
    build_with,
    check_worth,
    find_backbone,
    fit_state,
)
from recognition.models.tensor_files import SAFETENSORS, TORCH_SUFFIXES, read_tensor_file
from recognition.parse import parse_config

ONNX = ".onnx"
SUFFIXES = (*TORCH_SUFFIXES, SAFETENSORS, ONNX)
LANDMARKS, TEMPLATE = "landmarks", "template"
RUN_CONFIG, RUN_WEIGHTS = "config.yaml", "model.pt"
_MOST_CONFIG_BYTES = 1 << 20
# The F²C code takes pixels minus 127.5, divided by 128, in the order of OpenCV.
_F2C_KEYS = {"state_dict", "lru", "qp"}
_F2C_NORMALIZATION = Normalization(127.5, 128.0)


def load_model(
    source: str | Path,
    *,
    color: Color | None = None,
    device: str = "auto",
    landmarks: Literal["template"] | None = None,
) -> Model:
    """The model in a run folder, a model folder or a file; it is frozen and in evaluation mode.

    source: a run folder; a model folder; a .pt, .pth, .ckpt, .bin or .safetensors with the weights
    of a backbone, as arcface_torch, AdaFace, CVLface, FastFace and F²C publish it; an .onnx; or a
    folder with one such file. color: the order of the color channels that the weights were trained
    on, where the source does not say it. device: auto, cpu, cuda or mps.
    landmarks: template makes a network that needs the landmarks of each image take those of the
    ArcFace template instead.

    Raises FileNotFoundError, or a ValueError of one line that says what was found and what to do.
    """
    path = Path(source)
    kind = kind_of_device(device)
    place = torch.device(kind)
    if kind == "cuda":  # each of several processes has a GPU of its own, the current one
        place = torch.device(kind, torch.cuda.current_device())
    file = path if path.is_file() else _file_in(path)
    if file.suffix == ONNX:
        return load_onnx(file, color, place)
    facts, state = _read(file, color)
    if landmarks is not None:
        facts = _with_template(facts, str(source))
    network = build_with(facts.architecture, facts.size, state).requires_grad_(False).eval()
    placed = place_backbone(network, place, facts.channels_last)
    return Model(placed, facts, place, file).eval()


def _with_template(facts: ModelFacts, source: str) -> ModelFacts:
    """The facts of the same network with the template's landmarks."""
    part = facts.architecture
    if LANDMARKS not in part.options:
        raise ValueError(
            f"{source}: is a {part.name}, which takes no landmarks; leave out --landmarks"
        )
    return replace(facts, architecture=replace(part, options={**part.options, LANDMARKS: TEMPLATE}))


def _file_in(folder: Path) -> Path:
    """The file with the weights in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: not found; a model is a run folder, a model folder, or a file that ends in "
            f"{', '.join(SUFFIXES)}"
        )
    if (folder / FACTS).exists():
        return folder / WEIGHTS
    if _is_run(folder):
        return folder / RUN_WEIGHTS
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:4]) or "none"
        raise FileNotFoundError(
            f"{folder}: has neither {FACTS} nor {RUN_CONFIG}, and not one file of weights, but "
            f"{names}; give a run folder, a model folder, or one file"
        )
    return found[0]


def _read(file: Path, color: Color | None) -> tuple[ModelFacts, State]:
    """The facts and the weights in a file, with what lies beside it."""
    folder = file.parent
    if file.name == WEIGHTS and (folder / FACTS).exists():
        return _own(file, read_facts(folder), str(folder / FACTS), color)
    if file.name == RUN_WEIGHTS and _is_run(folder):
        return _own(file, _run_facts(folder), str(folder / RUN_CONFIG), color)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: expected a name that ends in {', '.join(SUFFIXES)}")
    tree = _without_lora(read_tensor_file(file), file)
    found = find_backbone(tree, file.stat().st_size, str(file))
    f2c = tree.keys() >= _F2C_KEYS
    said, where = _stated_color(file)
    if color and said and color != said:
        raise ValueError(f"{where} says {said}, so leave out --color {color}")
    guess = said or ("bgr" if f2c else _color_of_form(found.architecture, found.prefix, tree))
    chosen = color or guess
    if chosen is None:
        raise ValueError(f"{file}: {COLOR_UNKNOWN}")
    options = {**found.architecture.options, "bgr": chosen == "bgr"}
    return (
        ModelFacts(
            architecture=Part(found.architecture.name, options),
            size=found.size,
            normalization=_F2C_NORMALIZATION if f2c else Normalization(),
        ),
        found.state,
    )


def _without_lora(tree: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """What a file holds; the model.pt of a run with LoRA becomes the state dict of its model."""
    if not has_lora(tree):
        return tree
    tensors = {name: value for name, value in tree.items() if isinstance(value, torch.Tensor)}
    try:
        check_worth(tensors, file.stat().st_size)
        return merged(tensors)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _own(
    file: Path, facts: ModelFacts, source: str, color: Color | None
) -> tuple[ModelFacts, State]:
    """What this project wrote: the facts, and the weights of the backbone under their names."""
    if color and color != facts.color:
        raise ValueError(f"{source} says {facts.color}, so leave out --color {color}")
    if not file.exists():
        raise FileNotFoundError(f"{file}: not found, although {Path(source).name} is there")
    tree = read_tensor_file(file)
    tensors = {name: value for name, value in tree.items() if isinstance(value, torch.Tensor)}
    try:
        network = blank(facts.architecture, facts.size)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    try:
        check_worth(tensors, file.stat().st_size)
        return facts, fit_state(network, merged(tensors))
    except ValueError as error:
        raise ValueError(
            f"{file}: not the weights of {facts.architecture.name} in {Path(source).name}: {error}"
        ) from None


def _is_run(folder: Path) -> bool:
    """Whether the folder has a config.yaml of ours, be it damaged. CVLface has one of its own."""
    written = folder / RUN_CONFIG
    tree = _settings(written) if written.is_file() else {}
    return written.exists() and (not tree or "backbone" in tree)


def _run_facts(folder: Path) -> ModelFacts:
    """The facts in the config.yaml of a run folder."""
    written = folder / RUN_CONFIG
    try:
        tree = yaml.safe_load(read_file(written, _MOST_CONFIG_BYTES))
        config = parse_config(tree, str(written)) if isinstance(tree, dict) else None
    except (ConfigError, OSError):
        raise
    except (ValueError, yaml.YAMLError):
        config = None
    if config is None:
        raise ValueError(
            f"{written}: empty or damaged; train.py --resume writes it anew, and so does train.py "
            "--print-config"
        )
    return facts_of(config)


def _stated_color(file: Path) -> tuple[Color | None, str]:
    """The color order that CVLface's settings beside a file state, and the name of their file."""
    beside = (file.with_suffix(".yaml"), file.parent / "model.yaml", file.parent / "config.json")
    for path in beside:
        if path.is_file():
            tree = _settings(path)
            inner = tree.get("conf")
            stated = {**tree, **(inner if isinstance(inner, Mapping) else {})}.get("color_space")
            if stated in ("RGB", "BGR"):
                return ("rgb" if stated == "RGB" else "bgr"), str(path)
    return None, ""


def _settings(path: Path) -> Mapping[str, Any]:
    """What a YAML or JSON file holds; nothing if it can't be read as such."""
    try:
        text = read_file(path, _MOST_CONFIG_BYTES)
        tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, Mapping) else {}


def _color_of_form(architecture: Part, prefix: str, tree: Mapping[str, Any]) -> Color | None:
    """The color order that a published form implies; None if its networks had different ones.

    arcface_torch and FastFace train on RGB, and the other codes with their names have prefixes of
    their own. AdaFace trains on BGR, and its checkpoints hold a `state_dict` with the prefix
    `model.`; the bare names of its networks are those of CVLface too.
    """
    if architecture.name == "ir":
        return "bgr" if "state_dict" in tree and prefix == "model." else None
    arcface_torch = architecture.name in ("iresnet", "mobilefacenet", "vit")
    wrapped = prefix.replace("module.", "").replace("_orig_mod.", "")  # as PyTorch itself wraps
    return "rgb" if arcface_torch and not wrapped else None
