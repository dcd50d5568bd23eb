"""Writes a model folder from published weights, so that nothing has to be known of them any more.

    python -m tools.import_weights adaface_ir50_ms1mv2.ckpt models/adaface_ir50

FILE is whatever `--model` takes, but for an ONNX file, whose graph holds no weights of a backbone.
The folder holds model.safetensors, model.json (architecture, size, color order, normalization) and
a README.md, the model card, which says where the weights came from.
"""

from pathlib import Path
from typing import Any

import recognition
from data.files import file_digest
from data.text import markdown_text
from recognition.backbones import embedding_of
from recognition.models.facts import Color
from recognition.models.model import Model
from recognition.models.model_folder import write_model_folder
from recognition.models.onnx_file import OnnxNetwork
from recognition.parse import to_tree
from tools._cli import command
from tools._model_card import Export, model_card
from tools._model_record import read_record


def run(
    file: str, out: Path, *, color: Color | None = None, license: str | None = None
) -> dict[str, Any]:
    """Import one model.

    file: run folder, model folder, or file of weights: .pt, .pth, .ckpt or .safetensors.
    out: the folder to write; it may not exist yet.
    color: order of the color channels that the weights were trained on, if FILE does not say it.
    license: license of the weights for the card, as the hub writes it, such as mit.
    """
    model = recognition.load(file, color=color, device="cpu")
    if isinstance(model.network, OnnxNetwork):
        raise ValueError(f"{model.weights}: is a graph without a backbone; use the file as it is")
    card = model_card(_described(model, out.name, license), read_record(file))
    write_model_folder(out, model.facts, model.network.state_dict(), card)
    options = ", ".join(f"{name} {value}" for name, value in model.architecture.options.items())
    print(
        f"{out}: {model.architecture.name} ({options}), {model.size}×{model.size} pixels, trained "
        f"on {model.color.upper()}"
    )
    return {
        "architecture": to_tree(model.architecture),
        "size": model.size,
        "color": model.color,
        "normalization": to_tree(model.normalization),
    }


def _described(model: Model, name: str, license: str | None) -> Export:
    assert model.weights is not None
    return Export(
        name=name,
        form="safetensors",
        facts=model.facts,
        parameters=sum(weight.numel() for weight in model.network.parameters()),
        outputs=embedding_of(model.network),
        precision="fp32",
        mirror=False,
        l2_norm=False,
        origin=f"The weights are those of {markdown_text(model.weights.name)}, whose sha256 is "
        f"`{file_digest(model.weights)}`. They were imported without a change of their values. The "
        f"network was trained on {model.color.upper()} images; recognition.load takes RGB.",
        license=license,
    )


main = command(run)
