"""Writes a model folder from published weights, so that nothing has to be known of them any more.

    python -m tools.import_weights adaface_ir50_ms1mv2.ckpt models/adaface_ir50

FILE is whatever `--model` takes, but for an ONNX file, whose graph holds no weights of a backbone.
The folder holds model.safetensors, model.json (architecture, size, color order, normalization) and
a README.md, the model card, which says where the weights came from.
"""

from pathlib import Path
from typing import Any

import recognition
from data.text import markdown_text
from eval.extract import file_digest
from recognition.models.facts import Color
from recognition.models.model import Model
from recognition.models.model_folder import write_model_folder
from recognition.models.onnx_file import OnnxNetwork
from recognition.parse import to_tree
from tools._cli import command

_CARD = """---
library_name: pytorch
tags: [face-recognition, face-embeddings]
---

# {name}

Imported weights of a network that embeds aligned faces.

| | |
|---|---|
| file | {file} |
| sha256 of the file | `{digest}` |
| architecture | {architecture} |
| input | {size}×{size} pixels, RGB, faces aligned to ArcFace's template |
| color order of the training | {color} |
| normalization | (x − {mean:g}) / {std:g} for pixels x from 0 to 255 |

```python
import recognition

model = recognition.load("{name}")
embeddings = model.embed(["a.jpg", "b.jpg"])
```

The training set, the license, the intended use and the limits are those of the source. Fill them in
here before you pass the weights on.
"""


def run(file: str, out: Path, *, color: Color | None = None) -> dict[str, Any]:
    """Import one model.

    file: run folder, model folder, or file of weights: .pt, .pth, .ckpt or .safetensors.
    out: the folder to write; it may not exist yet.
    color: order of the color channels that the weights were trained on, if FILE does not say it.
    """
    model = recognition.load(file, color=color, device="cpu")
    if isinstance(model.network, OnnxNetwork):
        raise ValueError(f"{model.weights}: is a graph without a backbone; use the file as it is")
    write_model_folder(out, model.facts, model.network.state_dict(), _card(model, out))
    print(f"{out}: {_architecture(model)}, {model.size}×{model.size} pixels, {model.color.upper()}")
    return {
        "architecture": to_tree(model.architecture),
        "size": model.size,
        "color": model.color,
        "normalization": to_tree(model.normalization),
    }


def _architecture(model: Model) -> str:
    options = ", ".join(f"{name} {value}" for name, value in model.architecture.options.items())
    return f"{model.architecture.name} ({options})"


def _card(model: Model, out: Path) -> str:
    assert model.weights is not None
    return _CARD.format(
        name=markdown_text(out.name),
        file=markdown_text(model.weights.name),
        digest=file_digest(model.weights),
        architecture=_architecture(model),
        size=model.size,
        color=model.color.upper(),
        mean=model.normalization.mean,
        std=model.normalization.std,
    )


main = command(run)
