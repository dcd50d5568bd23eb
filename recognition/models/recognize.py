"""Which backbone the tensors of a file belong to, found from their names and shapes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data.parts import find_part, part_names
from recognition.backbones import Recognized
from recognition.config import Part
from recognition.parse import build_part

BACKBONES = "recognition.backbones"
State = Mapping[str, torch.Tensor]
_DEEPEST = 2  # mappings in the mapping that a checkpoint of a training code is
_NAMED = 3  # names in an error
TIMM_INSIDE = "net."
# First words of names that belong to the loss with which a backbone was trained.
_HEADS = {"centers", "classifier", "criterion", "fc", "fc7", "head", "kernel", "loss", "margin"}
# What some codes leave out. Neither has any effect on an embedding.
_NEEDLESS = ("num_batches_tracked", "mask_token")


@dataclass(frozen=True)
class Found:
    """The weights of one backbone in a file.

    state: all that the network has, float32. prefix: what stood before each name in the file.
    ignored: names in the file that belong to the head.
    """

    architecture: Part
    size: int
    state: State
    prefix: str
    ignored: tuple[str, ...]


def find_backbone(tree: Mapping[str, Any], file_bytes: int, source: str) -> Found:
    """The one backbone in what a file holds, whatever prefixes its names have.

    tree: tensors by name, or mappings of them. file_bytes: the size of the file. source: its name.
    Raises a ValueError of one line for a file with no backbone or several, and for tensors that are
    missing, left over, of another shape, or larger than the file.
    """
    places = [
        (state, name, prefix)
        for state in _states(tree)
        for name in part_names(BACKBONES)
        for prefix in _prefixes(state, name)
    ]
    # A network of timm inside a backbone has some of the names that mark our own.
    inner = [f"{prefix}{TIMM_INSIDE}" for _, name, prefix in places if name == "timm"]
    places = [one for one in places if one[2] not in inner]
    extended = [(_contained(name), prefix) for _, name, prefix in places]
    places = [one for one in places if one[1:] not in extended]
    if not places:
        held = [name for state in _states(tree) for name in state]
        raise ValueError(
            f"{source}: holds no backbone that is here ({', '.join(part_names(BACKBONES))}); "
            f"{_listed('its tensors are', held) if held else 'it has no tensors'}"
        )
    if len(places) > 1:
        found = " and ".join(f"{name} at '{prefix}'" for _, name, prefix in places[:_NAMED])
        raise ValueError(f"{source}: holds several backbones, {found}; save one of them alone")
    state, name, prefix = places[0]
    own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    try:
        check_worth(own, file_bytes)
        options, size = _recognized(name, own)
        architecture = Part(name, options)
        network = blank(architecture, size)
        wanted = network.state_dict()
        outside = [key for key in state if not key.startswith(prefix)]
        heads = {key for key in own if key not in wanted and _is_head(key)}
        if foreign := [key for key in outside if not _is_head(key)]:
            raise ValueError(_listed("has no place for", foreign))
        whole = fit_state(network, {key: own[key] for key in own if key not in heads})
    except ValueError as error:
        raise ValueError(f"{source}: its names are those of {name}, but {error}") from None
    ignored = (*outside, *(prefix + key for key in own if key in heads))
    return Found(architecture, size, whole, prefix, ignored)


def _states(tree: Mapping[Any, Any], depth: int = 0) -> Iterator[State]:
    """Every mapping of names to tensors in `tree`, itself included."""
    tensors = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if tensors:
        yield tensors
    for inner in tree.values():
        if depth < _DEEPEST and isinstance(inner, Mapping):
            yield from _states(inner, depth + 1)


def _prefixes(state: State, name: str) -> list[str]:
    """What stands before the names of the backbone `name` in `state`, for each that is there."""
    mark = getattr(find_part(BACKBONES, name), "MARK", None)
    if mark is None:
        return []
    found = [key.removesuffix(mark) for key in state if key.endswith(mark)]
    return [prefix for prefix in found if not prefix or prefix.endswith(".")]


def _contained(name: str) -> str | None:
    """The backbone whose mark the networks of `name` have, too."""
    contained: str | None = getattr(find_part(BACKBONES, name), "CONTAINS", None)
    return contained


def _recognized(name: str, own: State) -> Recognized:
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    try:
        recognized: Recognized = find_part(BACKBONES, name).recognize(shapes)
    except KeyError as error:
        raise ValueError(f"it lacks {error.args[0]}") from None
    return recognized


def _is_head(name: str) -> bool:
    words = [word for word in name.split(".") if word != "module"]
    return words[0] in _HEADS


def check_worth(state: State, file_bytes: int) -> None:
    """ValueError if tensors are no plain ones, or together larger than the file they came from."""
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"{name} is no plain tensor of real numbers")
    claimed = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in state.values())
    if claimed > file_bytes:
        raise ValueError(f"its tensors claim {claimed:,} bytes of a file of {file_bytes:,}")


def fit_state(network: nn.Module, state: State) -> State:
    """The tensors that `network` has, in its types. ValueError unless names and shapes are equal.

    network: may lie on the device meta.
    """
    wanted = network.state_dict()
    missing = [
        name for name in wanted if name not in state and name.rpartition(".")[2] not in _NEEDLESS
    ]
    if missing:
        raise ValueError(_listed("it lacks", missing))
    if foreign := [name for name in state if name not in wanted]:
        raise ValueError(_listed("the network has no place for", foreign))
    wrong = [
        f"{name} {_kind(state[name])} instead of {_kind(one)}"
        for name, one in wanted.items()
        if name in state and _kind(state[name]) != _kind(one)
    ]
    if wrong:
        raise ValueError(_listed("it has", wrong))
    return {
        # A copy, because the bits of a result may depend on how its inputs lie in memory.
        name: state[name].to(one.dtype, copy=True, memory_format=torch.contiguous_format)
        if name in state
        else torch.zeros(one.shape, dtype=one.dtype)
        for name, one in wanted.items()
    }


def blank(architecture: Part, size: int) -> nn.Module:
    """The network on the device meta, where it costs neither memory nor random numbers.

    ValueError for options with which there is none, such as numbers beyond all sizes.
    """
    try:
        with torch.device("meta"):
            network: nn.Module = build_part(BACKBONES, architecture, size=size)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch raises each of them
        first = str(error).partition("\n")[0]
        raise ValueError(f"there is no {architecture.name} with its options ({first})") from None
    return network


def build_with(architecture: Part, size: int, state: State) -> nn.Module:
    """The network of `architecture` with the weights that `fit_state` returned."""
    network = blank(architecture, size)
    network.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        # It has buffers that its state dict leaves out.
        network = build_part(BACKBONES, architecture, size=size)
        network.load_state_dict(state)
    return network


def _kind(tensor: torch.Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else 'int'} {tuple(tensor.shape)}"


def _listed(what: str, names: Sequence[str]) -> str:
    """`what`, and the first few of the names."""
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{what} {', '.join(names[:_NAMED])}{rest}"
