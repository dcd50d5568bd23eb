"""What has to be known of a model's weights before they can be used."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from data.options import PartOf, Positive, Range
from recognition.config import Part
from recognition.parse import parse_section, to_tree

Color = Literal["rgb", "bgr"]
"""The order of the color channels that a network was trained on."""
COLOR_UNKNOWN = (
    "nothing in it says whether it was trained on RGB or BGR; give --color rgb or --color bgr (in "
    "Python: color=), which its authors know: AdaFace's are bgr, insightface's rgb"
)
VERSION = 1


@dataclass(frozen=True)
class Normalization:
    """A pixel value x from 0 to 255 becomes (x − mean) / std. The default gives −1 to 1."""

    mean: float = 127.5
    """What is subtracted."""
    std: Positive = 127.5
    """What the difference is divided by."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """All that `model.json` says of the weights beside it.

    The network that `architecture` builds takes RGB. Where `color` is bgr it reverses the channels
    inside, which is the option `bgr` of every backbone.
    """

    architecture: Annotated[Part, PartOf("recognition.backbones")]
    """The backbone with its options, as in the section `backbone` of a config."""
    size: Annotated[int, Range(at_least=1)] = 112
    """Side of the square input, in pixels."""
    normalization: Normalization = Normalization()
    """What becomes of the pixels before the network gets them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number type of the network's matrix products, as `run.precision`."""
    channels_last: bool = False
    """Memory layout of images and weights, as `run.channels_last`."""

    @property
    def color(self) -> Color:
        """The order of the channels that the weights were trained on."""
        return "bgr" if self.architecture.options.get("bgr", False) else "rgb"


def facts_json(facts: ModelFacts) -> str:
    """The text of a model.json, which `parse_facts` reads."""
    tree = {"version": VERSION, **to_tree(facts), "color": facts.color}
    return json.dumps(tree, indent=2) + "\n"


def parse_facts(text: str | bytes, source: str) -> ModelFacts:
    """The facts in the text of a model.json; `source` names it in the ValueError of one line."""
    try:
        tree: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{source}: not readable as JSON") from None
    if not isinstance(tree, dict) or tree.pop("version", None) != VERSION:
        raise ValueError(f"{source}: expected keys and values, among them version {VERSION}")
    color = tree.pop("color", None)
    try:
        facts: ModelFacts = parse_section(ModelFacts, tree, "")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if color != facts.color:
        raise ValueError(
            f"{source}: color: found {color!r}, but architecture.bgr says {facts.color}"
        )
    return facts
