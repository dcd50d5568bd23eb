"""Any network of the library timm (github.com/huggingface/pytorch-image-models) that embeds.

timm's network gives a map, tokens or a vector. An embedding layer in ArcFace's form turns them into
the embedding: batch norm, dropout, one linear layer, batch norm (arXiv 1801.07698, section 3.2).

Images come in [-1, 1], as to every backbone. The network itself changes them to the mean and the
standard deviation that its pretrained weights want. Both numbers are kept among the weights, so
that training, evaluation and exported files all use them.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from data.options import Count, PathText, Positive, ShareBelowOne
from data.parts import hint
from recognition.backbones import Recognized, Shapes
from recognition.backbones._recompute import recompute_itself
from recognition.models.tensor_files import read_tensor_file

OWN = "timm"
"""The value of the option `weights` that lets timm download its own weights."""
# What may stand in `options`: numbers, words, and lists of them. timm would also take classes and
# files. No network needs numbers beyond this one.
LARGEST = 10_000
# Options that this file gives itself, and those that would read or download files.
TAKEN = (
    "cache_dir",
    "checkpoint_path",
    "features_only",
    "global_pool",
    "img_size",
    "in_chans",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "pretrained_strict",
)
# Where training codes keep the state dict, in the order in which timm looks for it.
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")
NAMED = 3  # names in an error


class ToEmbedding(nn.Module):
    """(B,C,N) float -> (B,D) float32: C channels at N places become an embedding."""

    def __init__(self, channels: int, places: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels * places, embedding, bias=False)
        self.features = nn.BatchNorm1d(embedding, affine=False)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The last layers keep full precision, as those of our other backbones.
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(self.linear.weight.dtype))
            return self.features(self.linear(self.dropout(x.flatten(1))))


class TimmBackbone(nn.Module):
    """(B,3,size,size) float images in [-1, 1] -> (B,D) embeddings, not normalized."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        to_embedding: ToEmbedding,
        *,
        side: int | None,
        channels_first: bool,
        mean: Sequence[float],
        std: Sequence[float],
        bgr: bool,
    ) -> None:
        super().__init__()
        self.net, self.to_embedding = net, to_embedding
        self.embedding = to_embedding.linear.out_features
        self.side, self.channels_first, self.bgr = side, channels_first, bgr
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The mean and the deviation are those of pixels from 0 to 1.
        x = images.flip(1) if self.bgr else images
        x = (x / 2 + (0.5 - self.mean)) / self.std
        if self.side is not None:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        x = self.net(x)
        if x.ndim == 2:
            return self.to_embedding(x[:, :, None])
        return self.to_embedding(x.flatten(2) if self.channels_first else x.flatten(1, -2).mT)


MARK = "to_embedding.linear.weight"


def recognize(shapes: Shapes) -> Recognized:
    """Refuses them: names and shapes do not tell which of timm's many networks it is."""
    raise ValueError(
        "they do not tell which model of timm it is; give the folder of the run, or the one that "
        "tools.export wrote"
    )


def build(
    size: int = 112,
    *,
    model: str = "convnext_nano",
    options: Mapping[str, Any] | None = None,
    weights: PathText | None = None,
    embedding: Count = 512,
    pool: Literal["flatten", "timm"] = "flatten",
    dropout: ShareBelowOne = 0.0,
    resize: Count | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[Positive] | None = None,
    bgr: bool = False,
    checkpoint: bool = False,
) -> TimmBackbone:
    """A network of the library timm, for square images of `size` pixels per side.

    model: name in timm, such as convnext_nano, or with its pretrained weights, as in
        vit_small_patch14_dinov2.lvd142m.
    options: what timm's network is built with, such as `{patch_size: 8, drop_path_rate: 0.1}`.
    weights: trained weights of timm's network from which a new run starts: a .safetensors or .pth
        file, or `timm` for those that timm downloads. The embedding layer starts at random. null:
        random weights.
    embedding: numbers per embedding.
    pool: what the embedding layer gets. flatten: all places of the last map, or all tokens, as in
        ArcFace. timm: the vector into which timm pools them.
    dropout: probability of dropping a number before the embedding layer.
    resize: side in pixels to which the network enlarges or shrinks images inside, as for weights
        that were trained on larger ones. null: it leaves them as they are.
    mean: three means that are subtracted from pixels from 0 to 1. null: those of the pretrained
        weights of `model`.
    std: three numbers by which the difference is divided. null: those of the pretrained weights.
    bgr: reverse the color channels inside the network. Set it for weights that were trained on BGR;
        the images that you give stay RGB.
    checkpoint: compute each block again in the backward pass. This needs less memory and a third
        more time.
    """
    side = resize or size
    _check_model(model)
    _check_options(options or {})
    try:
        channels, places, first = _output(model, options, side, pool)
    except ValueError as error:
        raise ValueError(f"{error}; {_advice(model, options, side, pool)}") from None
    net = _network(model, options, side, pool)
    if checkpoint:
        _checkpoint(net, model)
    cfg: Any = net.pretrained_cfg
    return TimmBackbone(
        net,
        ToEmbedding(channels, places, embedding, dropout),
        side=resize,
        channels_first=first,
        mean=_three(cfg["mean"] if mean is None else mean, "mean"),
        std=_three(cfg["std"] if std is None else std, "std"),
        bgr=bgr,
    )


def load_pretrained(backbone: nn.Module, source: str, options: Mapping[str, Any], size: int) -> str:
    """Copy trained weights into timm's network, and return a line that says what was copied.

    source: a file, or `timm` for what timm downloads. options: those of `build`. Every tensor of
    the network must be in a file; timm renames them and fits patches and positions to the size,
    where it knows how. Raises ValueError.
    """
    assert isinstance(backbone, TimmBackbone)
    model, side = options["model"], options["resize"] or size
    others = ""
    if source != OWN:
        state, own = _read_state(source), backbone.net.state_dict()
        unknown = [name for name in state if name not in own]
        nothing = {
            name: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
        # timm says nothing of what a file lacks, so these are the tensors that stay numbers.
        probe = _with_state(nothing, source, options, side)
        lacking = [
            name
            for name, tensor in probe.items()
            if tensor.is_floating_point() and not tensor.isnan().any()
        ]
        if lacking:
            more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
            if unknown:
                others = f", and {len(unknown)} of its names are others, first {unknown[0]}"
            raise ValueError(
                f"backbone.weights: {source} lacks {', '.join(lacking[:NAMED])}{more} of {model}"
                f"{others}; give the weights of this model, or the backbone.model and "
                "backbone.options of the file"
            )
        loaded = _with_state(state, source, options, side)
        if unknown and state.keys() >= own.keys():  # otherwise timm may have renamed them
            others = f"; not loaded: {len(unknown)} others of the file, first {unknown[0]}"
    else:
        loaded = _downloaded(options, side)
    backbone.net.load_state_dict(loaded)
    numbers = sum(tensor.numel() for tensor in loaded.values())
    mean, std = (
        ", ".join(f"{number:.3f}" for number in buffer.flatten())
        for buffer in (backbone.mean, backbone.std)
    )
    return (
        f"backbone.weights: {source}: {len(loaded)} tensors of {model} loaded ({numbers:,} "
        f"numbers){others}; it takes pixels from 0 to 1 minus ({mean}), divided by ({std})"
    )


def _with_state(
    state: dict[str, torch.Tensor], source: str, options: Mapping[str, Any], side: int
) -> dict[str, torch.Tensor]:
    """The state dict of timm's network after timm has loaded `state`; `source` is its file."""
    try:
        with _silent("timm"):  # it writes every name that it does not know into one line
            net = _network(
                options["model"],
                options["options"],
                side,
                options["pool"],
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": state, "custom_load": False},
            )
    except ValueError as error:
        raise ValueError(f"backbone.weights: {source} does not fit: {error}") from None
    return dict(net.state_dict())


def _downloaded(options: Mapping[str, Any], side: int) -> dict[str, torch.Tensor]:
    """The state dict of timm's network with the weights that timm downloads, or has downloaded."""
    try:
        with _silent("huggingface_hub"):  # it tells of every try
            net = _network(
                options["model"], options["options"], side, options["pool"], pretrained=True
            )
    except ValueError as error:
        raise ValueError(
            f"backbone.weights: found {OWN!r}, but it can't load them ({error}); download the file "
            "on another machine, and give its path"
        ) from None
    return dict(net.state_dict())


@contextmanager
def _silent(library: str) -> Iterator[None]:
    """Messages of a library below critical ones are not shown inside."""
    log = logging.getLogger(library)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _read_state(source: str) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, without what wraps them; nothing in it is executed."""
    try:
        tree = read_tensor_file(Path(source))
    except OSError as error:
        raise ValueError(f"backbone.weights: {source}: {error.strerror or error}") from None
    except ValueError as error:  # it names the file
        raise ValueError(f"backbone.weights: {error}") from None
    inner = next((tree[place] for place in PLACES if isinstance(tree.get(place), Mapping)), tree)
    state = {
        name.removeprefix("module."): tensor
        for name, tensor in inner.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not state:
        raise ValueError(f"backbone.weights: {source} has no tensors")
    return state


def _check_model(model: str) -> None:
    """ValueError if timm is not there, or has no such model or no such weights of it."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"backbone.name: timm needs the package {error.name}; install the extra: "
            "pip install -e '.[timm]'"
        ) from None
    name = model.partition(".")[0]
    if not timm.is_model(name):
        raise ValueError(f"backbone.model: timm has no {model!r}; {hint(name, timm.list_models())}")
    try:
        timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        raise ValueError(f"backbone.model: timm has no {model!r}: {_first(error)}") from None


def _network(
    model: str, options: Mapping[str, Any] | None, side: int, pool: str, **given: Any
) -> nn.Module:
    """timm's network for images of `side` pixels, without its classifier. ValueError for others."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(model, allow_unregistered=False)
        if cfg.fixed_input_size:
            given["img_size"] = side
        net: Any = timm.create_model(model, num_classes=0, **(options or {}), **given)
        if pool == "flatten":
            net.reset_classifier(0, "")
    except Exception as error:  # timm raises many kinds for options that do not fit each other
        raise ValueError(
            f"backbone.model: timm can't build {model} for {side} pixels: {_first(error)}"
        ) from None
    checked: nn.Module = net
    return checked


def _check_options(options: Mapping[str, Any]) -> None:
    """ValueError for options of timm's networks that are given elsewhere or are no plain values."""
    for name, value in options.items():
        key = f"backbone.options.{name}"
        if name in TAKEN:
            raise ValueError(f"{key}: can't be set; the other keys of backbone decide it")
        if not _plain(value):
            raise ValueError(
                f"{key}: found {str(value)[:80]!r}, expected text, true, false, a number up to "
                f"{LARGEST:,}, or a list of them"
            )


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 100 and all(map(_plain, value))
    if isinstance(value, (int, float)):
        return abs(value) <= LARGEST
    return value is None or isinstance(value, str)


def _output(
    model: str, options: Mapping[str, Any] | None, side: int, pool: str
) -> tuple[int, int, bool]:
    """Channels and places of what the network gives, and whether the channels come first.

    It runs on tensors without storage, at no cost. ValueError if it can't take the images.
    """
    with torch.device("meta"), torch.no_grad():
        net = _network(model, options, side, pool).eval()
        for conv in _image_convolutions(net):
            conv.register_forward_hook(_refuse_lost_pixels)
        try:
            out = net(torch.zeros(2, 3, side, side))
        except Exception as error:  # as above
            raise ValueError(
                f"backbone.model: {model} takes no images of {side} pixels: {_first(error)}"
            ) from None
    if not isinstance(out, torch.Tensor) or out.ndim not in (2, 3, 4):
        found = f"{tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"backbone.model: {model} gives {found}, and no map, tokens or vector")
    if out.ndim == 2:
        return out.shape[1], 1, True
    widths = {getattr(net, "num_features", 0), getattr(net, "head_hidden_size", 0)}
    first = out.ndim == 4 and out.shape[1] in widths
    channels = out.shape[1] if first else out.shape[-1]
    return channels, out[0].numel() // channels, first


def _image_convolutions(net: nn.Module) -> list[nn.Conv2d]:
    return [one for one in net.modules() if isinstance(one, nn.Conv2d) and one.in_channels == 3]


def _refuse_lost_pixels(conv: nn.Conv2d, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
    """ValueError if patches leave out the border of the images. Those that overlap may."""
    patch, pixels = conv.kernel_size[0], inputs[0].shape[-1]
    lost = pixels - out.shape[-1] * patch
    if patch == conv.stride[0] and lost > 0:
        raise ValueError(
            f"patches of {patch} pixels do not divide {pixels}, and {lost} of these would be lost "
            "(give another patch_size, or resize)"
        )


def _advice(model: str, options: Mapping[str, Any] | None, side: int, pool: str) -> str:
    """Which other `pool` or `resize` works, found by trying a few on tensors without storage."""
    import timm

    own = timm.get_pretrained_cfg(model).input_size[-1]
    try:
        with torch.device("meta"):
            net = _network(model, options, own, "timm")
    except ValueError:
        return f"it can't be built for its own {own} pixels either; change backbone.options"
    sides = {own, -(-side // 32) * 32}
    for patch in {conv.kernel_size[0] for conv in _image_convolutions(net)}:
        sides |= {side // patch * patch, -(-side // patch) * patch}
    others = sorted(sides - {0, side}, key=lambda other: (abs(other - side), -other))
    alone = {"backbone.pool=timm": ("timm", side)}
    alone |= {f"backbone.resize={other}": (pool, other) for other in others}
    both = {f"backbone.pool=timm with backbone.resize={other}": ("timm", other) for other in others}
    for tried in (alone, both):
        works = [key for key, to in tried.items() if _works(model, options, *to)]
        if works:
            return f"what works: {', or '.join(works[:NAMED])}"
    return f"none of {', '.join(alone)} helps; choose another model"


def _works(model: str, options: Mapping[str, Any] | None, pool: str, side: int) -> bool:
    try:
        _output(model, options, side, pool)
    except ValueError:
        return False
    return True


def _checkpoint(net: nn.Module, model: str) -> None:
    """Make each block of the network compute itself again in the backward pass.

    timm names the blocks for learning rates by depth, and the same names serve here. Some networks
    have no such names, or a function in their place. ValueError for these.
    """
    matcher: Any = getattr(net, "group_matcher", dict)
    groups = matcher(coarse=False)
    found = groups.get("blocks", []) if isinstance(groups, Mapping) else []
    rules = [(found, None)] if isinstance(found, str) else found
    patterns = [re.compile(rule) for rule, place in rules if place is None]
    blocks = [
        module
        for name, module in net.named_modules()
        if any(pattern.fullmatch(name) for pattern in patterns)
    ]
    if not blocks:
        raise ValueError(
            f"backbone.checkpoint: {model} has no blocks that timm names; leave it out"
        )
    for block in blocks:
        recompute_itself(block)


def _three(numbers: Sequence[float], key: str) -> list[float]:
    if len(numbers) != 3:
        raise ValueError(f"backbone.{key}: found {list(numbers)}, expected three numbers")
    return [float(number) for number in numbers]


def _first(error: Exception) -> str:
    """The error in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
