"""A model in an ONNX file, which onnxruntime computes: insightface's packs, and what we export.

An ONNX file is a graph of operations, not code, and onnxruntime runs only the operations that it
has itself.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recognition.backbones import USUAL_SIZE
from recognition.config import Part
from recognition.models.facts import (
    COLOR_UNKNOWN,
    Color,
    ModelFacts,
    Normalization,
    parse_facts,
)
from recognition.models.model import Model

ONNX = "onnx"
"""Name of the architecture of an ONNX file whose backbone is not known."""
METADATA = "model.json"
"""Name of the entry of an ONNX file's metadata in which `tools.export` writes its facts."""
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_RAW = Normalization(0.0, 1.0)
# Names of weights that only insightface's networks have, of PyTorch and of MXNet. All are RGB.
_RGB_NAMES = ("layer1.0.", "features.layers.", "patch_embed.proj.", "stage1_unit1_")


class OnnxNetwork(nn.Module):
    """Runs a session on float (B,3,S,S) in RGB -> (B,D), on the CPU."""

    def __init__(self, session: Any, output: str, flip: bool) -> None:
        super().__init__()
        self.session, self.output, self.flip = session, output, flip
        one = session.get_inputs()[0]
        self.input, self.dtype = one.name, _TYPES[one.type]
        self.rows = one.shape[0] if isinstance(one.shape[0], int) else 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (images.flip(1) if self.flip else images).numpy().astype(self.dtype)
        # A file that was exported for a fixed batch gets batches of this size, the last one padded.
        rows = self.rows or len(pixels)
        pieces = []
        for at in range(0, len(pixels), rows):
            piece = pixels[at : at + rows]
            padded = np.pad(piece, ((0, rows - len(piece)), (0, 0), (0, 0), (0, 0)))
            pieces.append(self.session.run([self.output], {self.input: padded})[0][: len(piece)])
        return torch.from_numpy(np.concatenate(pieces))


def load_onnx(path: Path, color: Color | None, device: torch.device) -> Model:
    """The model in an ONNX file. The errors are those of `load_model`.

    It gets its images on the CPU. It computes on CUDA if `device` is of that kind and onnxruntime
    supports it.
    """
    graph, session = _open(path, device)
    size, output = _check_ends(session, path)
    written = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if written is not None:
        facts = parse_facts(written, f"{path}, metadata {METADATA}")
        if color and color != facts.color:
            raise ValueError(
                f"{path}: its metadata says {facts.color}, so leave out --color {color}"
            )
        if facts.size != size:
            raise ValueError(f"{path}: its metadata says size {facts.size}, its input has {size}")
        flip = False  # what we export takes RGB
    else:
        chosen = color or ("rgb" if _has_rgb_names(graph) else None)
        if chosen is None:
            raise ValueError(f"{path}: {COLOR_UNKNOWN}")
        flip = chosen == "bgr"
        facts = ModelFacts(
            architecture=Part(ONNX, {"bgr": flip}), size=size, normalization=_normalization(graph)
        )
    return Model(OnnxNetwork(session, output, flip), facts, torch.device("cpu"), path).eval()


def _open(path: Path, device: torch.device) -> tuple[Any, Any]:
    """The graph in a file, and the session that computes it."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"{path}: needs the package {error.name}; pip install -e '.[onnx]' installs it"
        ) from None
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    cuda_options = {"device_id": device.index or 0}
    chosen = [("CUDAExecutionProvider", cuda_options)] if device.type == "cuda" and cuda else []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised as well
    try:
        graph = onnx.load(path, load_external_data=False).graph
        providers = [*chosen, "CPUExecutionProvider"]
        # Without a second try, which onnxruntime would announce on the terminal.
        return graph, onnxruntime.InferenceSession(
            path, options, providers=providers, enable_fallback=0
        )
    except OSError:
        raise
    except Exception as error:  # onnx and onnxruntime raise kinds of their own
        first = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: onnxruntime can't load it ({first[:200]})") from None


def _check_ends(session: Any, path: Path) -> tuple[int, str]:
    """The side of the input and the name of the output, or ValueError for another kind of graph."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    if len(shape) != 4 or shape[1] not in (3, None, "") or inputs[0].type not in _TYPES:
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs[:3])
        raise ValueError(f"{path}: found inputs {found}, expected one of floats (B,3,S,S)")
    rows, columns = (side if isinstance(side, int) else USUAL_SIZE for side in shape[2:])
    vectors = [one.name for one in outputs if len(one.shape) == 2 and one.shape[1] != 1]
    if rows != columns or len(vectors) != 1:
        found = ", ".join(f"{one.name} {one.shape}" for one in outputs[:3])
        raise ValueError(
            f"{path}: found input {shape} and outputs {found}, expected a square input and one "
            "output (B,D)"
        )
    return rows, vectors[0]


def _normalization(graph: Any) -> Normalization:
    """What the graph needs. One that subtracts and divides (or multiplies) first takes raw pixels.

    Those of insightface's MXNet networks do.
    """
    name, steps = graph.input[0].name, set()
    for node in graph.node:  # they are in the order of computation
        if name in node.input and node.op_type in ("Sub", "Add", "Mul", "Div", "Identity", "Cast"):
            steps.add(node.op_type)
            name = node.output[0]
    return _RAW if steps & {"Sub", "Add"} and steps & {"Mul", "Div"} else Normalization()


def _has_rgb_names(graph: Any) -> bool:
    return any(one.name.startswith(_RGB_NAMES) for one in graph.initializer)
