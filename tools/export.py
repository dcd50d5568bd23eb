"""Writes a model as a folder to take away: ONNX or safetensors, with a model card.

    python -m tools.export runs/mine --to onnx

The folder is what a repository on the Hugging Face hub holds. The command checks the file that it
wrote: it embeds 64 faces with the model and with the file, and compares the cosines of all pairs.
If they differ by more than 1e-4 (fp16: 5e-3), it writes nothing and its exit code is 1.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import recognition
from data.files import check_new, new_folder
from eval.batches import decoded_batches
from eval.extract import open_source
from eval.verdict import read_evaluation
from recognition.models.facts import Color
from recognition.models.model import Model
from recognition.models.model_folder import CARD, write_model
from tools._cli import Failed, command
from tools._model_card import Export, model_card
from tools._model_record import read_record, write_record
from tools._onnx import check_packages, write_onnx

FACES = 64  # compared: 2,016 pairs
DRAWN = "synthetic:identities=16,images=4,first=3000000,size={size}"
BOUNDS = {"fp32": 1e-4, "fp16": 5e-3}
# The first batches differ in size, which a file for a fixed batch would refuse.
BATCHES = (range(1), range(1, 8), range(8, 40), range(40, FACES))
ONNX = "model.onnx"


def export(
    model: str,
    *,
    to: Literal["onnx", "safetensors"],
    out: str | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    mirror: bool = False,
    l2_norm: bool = False,
    faces: str | None = None,
    color: Color | None = None,
    landmarks: Literal["template"] | None = None,
    name: str | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """Write the folder, check what is in it, and say how well it agrees with the model.

    model: run folder, model folder, or file of weights: .pt, .pth, .ckpt or .safetensors.
    to: onnx, for onnxruntime and other programs, or safetensors, for recognition.load.
    out: folder to write. Without it: the name of the model with -onnx or -safetensors behind it,
        in the working directory.
    precision: number type of the weights; in an ONNX file also of the arithmetic.
    mirror: build into the ONNX file that the embedding of the mirror image is added.
    l2_norm: build into the ONNX file that embeddings get the length 1.
    faces: faces for the check, such as a folder or record file. Without it, drawn ones.
    color: order of the color channels that the weights were trained on, if their file does not say
        it. The exported model takes RGB in any case.
    landmarks: template: a network that needs the landmarks of each image takes those of the ArcFace
        template instead.
    name: name of the model in its card.
    license: license of the weights for the card, as the hub writes it, such as cc-by-nc-4.0.
    """
    if to == "onnx":
        check_packages()
    elif mirror or l2_norm:
        raise ValueError("--mirror and --l2-norm are built into ONNX files; use --to onnx")
    loaded = recognition.load(model, color=color, device="cpu", landmarks=landmarks)
    if loaded.weights is None or loaded.weights.suffix == ".onnx":
        raise ValueError(f"{model}: is an ONNX file already; give the model that it was made of")
    if loaded.needs_landmarks:
        raise ValueError(
            f"{model}: needs the landmarks of each image, and an exported file takes images alone; "
            "give --landmarks template"
        )
    source = Path(model).absolute()
    called = name or (source.stem if source.is_file() else source.name)
    target = Path(out or f"{called}-{to}")
    check_new(target)
    record = read_record(model)
    pixels, shown = read_faces(faces, loaded.size)
    expected = run_torch(loaded, pixels, mirror=mirror)
    if not np.isfinite(expected).all():
        raise ValueError(f"{model}: its embeddings are not finite; was its training stopped early?")

    with new_folder(target) as folder:
        half = precision == "fp16"
        if to == "onnx":
            run_file = write_graph(loaded, folder, half=half, mirror=mirror, l2_norm=l2_norm)
        else:
            run_file = write_weights(loaded, folder, half=half)
        difference, bound = largest_difference(expected, run_file(pixels)), BOUNDS[precision]
        if not difference <= bound:
            advice = "; use --precision fp32" if precision == "fp16" else ""
            raise Failed(
                f"{model}: pair cosines of {shown} differ by {difference:.2g} between the model and"
                f" the file, more than {bound:g}, so nothing was written{advice}"
            )
        write_record(record, folder)
        evaluation, _ = read_evaluation(folder)
        described = Export(
            name=called,
            form=to,
            facts=loaded.facts,
            parameters=sum(weight.numel() for weight in loaded.network.parameters()),
            outputs=expected.shape[1],
            precision=precision,
            mirror=mirror,
            l2_norm=l2_norm,
            origin=f"{FACES} faces ({shown}) were embedded with the model in PyTorch "
            f"{torch.__version__} and with this file. The cosines of their "
            f"{FACES * (FACES - 1) // 2:,} pairs differ by at most {difference:.1e}; {bound:g} is "
            "allowed.",
            license=license,
            threshold=evaluation.threshold_line() if evaluation else None,
        )
        (folder / CARD).write_text(model_card(described, record), encoding="utf-8")
    print(f"{target}: pair cosines of {shown} differ by at most {difference:.1e} from the model's")
    return {"folder": str(target), "difference": difference, "bound": bound}


def write_graph(
    model: Model, folder: Path, *, half: bool, mirror: bool, l2_norm: bool
) -> Callable[[torch.Tensor], np.ndarray]:
    """Write model.onnx into the folder, and return what computes embeddings from it."""
    file = folder / ONNX
    write_onnx(model.network, model.facts, file, half=half, mirror=mirror, l2_norm=l2_norm)
    return partial(run_onnx, file)


def write_weights(
    model: Model, folder: Path, *, half: bool
) -> Callable[[torch.Tensor], np.ndarray]:
    """Write a model folder without its card, and return what computes embeddings from it.

    Failed unless the file holds the same bits.
    """
    state = half_weights(model.network) if half else model.network.state_dict()
    write_model(folder, model.facts, state)
    read = recognition.load(folder, device="cpu")
    check_same(state, read.network.state_dict())
    return partial(run_torch, read)


def read_faces(source: str | None, size: int) -> tuple[torch.Tensor, str]:
    """FACES pictures, uint8 (N,3,S,S), spread evenly over a set, and what they are."""
    images, _ = open_source(source or DRAWN.format(size=size))
    if len(images) < FACES:
        raise ValueError(f"--faces {source}: has {len(images)} images, the check needs {FACES}")
    chosen = np.linspace(0, len(images) - 1, FACES).astype(np.int64)
    (batch,) = decoded_batches(images, [chosen], size)
    if batch.failure:
        raise batch.failure[1]
    kind = f"faces of {Path(source).name}" if source else "drawn faces"
    return batch.pixels.permute(0, 3, 1, 2).contiguous(), kind


def run_torch(model: Model, pixels: torch.Tensor, *, mirror: bool = False) -> np.ndarray:
    """float32 (N,D) of a model in float32; with `mirror` the sum with the mirror images'."""
    mean, std = model.normalization.mean, model.normalization.std
    inputs = (pixels.float() - mean) / std
    with torch.inference_mode():
        found = [model.network(inputs[list(rows)]) for rows in BATCHES]
        if mirror:
            mirrored = [model.network(inputs[list(rows)].flip(3)) for rows in BATCHES]
            found = [sum(pair) for pair in zip(found, mirrored, strict=True)]
        joined: np.ndarray = torch.cat(found).numpy()
    return joined


def run_onnx(path: Path, pixels: torch.Tensor) -> np.ndarray:
    """float32 (N,D) of an exported file: onnxruntime on the CPU, as the card shows its use."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = (pixels.numpy().astype(np.float32) - 127.5) / 127.5
    return np.concatenate([session.run(None, {"input": inputs[list(rows)]})[0] for rows in BATCHES])


def largest_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference between the cosines of two rows (N,D); NaN if one is not finite."""
    cosines = []
    for vectors in (expected, found):
        unit = vectors.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines.append(unit @ unit.T)
    return float(np.abs(cosines[0] - cosines[1]).max())


def check_same(written: Mapping[str, torch.Tensor], read: Mapping[str, torch.Tensor]) -> None:
    """Failed unless each tensor that was read from a file has the values that were written."""
    for name, value in read.items():
        if not torch.equal(value, written[name].to(value.dtype)):
            raise Failed(f"{name}: other values were read from the file than were written")


def half_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict in float16; statistics of batch norm, which may be too large for it, stay."""
    state = dict(network.state_dict())
    kept = {
        f"{name}.{buffer}"
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer in ("running_mean", "running_var")
    }
    return {
        name: value.half() if value.is_floating_point() and name not in kept else value
        for name, value in state.items()
    }


main = command(export)
