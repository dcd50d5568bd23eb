"""ONNX files as models: graphs that are written here, node by node."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recognition
from recognition.config import Part
from recognition.models.facts import ModelFacts, Normalization, facts_json
from tools import import_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE, D = 8, 4
WEIGHT = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, D)).astype(np.float32)
CROPS = torch.randint(0, 256, (5, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).byte()
INSIGHTFACE, OTHER = "layer1.0.bn1.weight", "w"


def write(
    path: Path,
    *,
    name: str = INSIGHTFACE,
    batch: int | str = "None",
    raw: bool = False,
    half: bool = False,
    outputs: tuple[str, ...] = ("683",),
    shape: tuple[Any, ...] = (3, SIZE, SIZE),
    metadata: str | None = None,
) -> Path:
    """Flatten(x) · WEIGHT. raw: it subtracts 127.5 and multiplies by 1/128 itself, as MXNet's."""
    make, kind = onnx.helper, onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    number = np.float16 if half else np.float32
    held = {name: np.resize(WEIGHT, (math.prod(shape), D)).astype(number)}
    nodes, at = [], "input.1"
    if raw:
        held |= {"mean": np.array(127.5, number), "scale": np.array(1 / 128, number)}
        nodes.append(make.make_node("Sub", [at, "mean"], ["centered"]))
        nodes.append(make.make_node("Mul", ["centered", "scale"], ["scaled"]))
        at = "scaled"
    nodes.append(make.make_node("Flatten", [at], ["flat"]))
    nodes += [make.make_node("MatMul", ["flat", name], [one]) for one in outputs]
    graph = make.make_graph(
        nodes,
        "net",
        [make.make_tensor_value_info("input.1", kind, [batch, *shape])],
        [make.make_tensor_value_info(one, kind, [batch, D]) for one in outputs],
        [onnx.numpy_helper.from_array(value, one) for one, value in held.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    if metadata is not None:
        make.set_model_props(model, {"model.json": metadata})
    onnx.save(model, path)
    return path


def expected(color: str = "rgb", mean: float = 127.5, std: float = 127.5) -> torch.Tensor:
    pixels = (CROPS.flip(1) if color == "bgr" else CROPS).double()
    return ((pixels - mean) / std).flatten(1) @ torch.from_numpy(WEIGHT).double()


def close(path: Path, wanted: torch.Tensor, tolerance: float = 1e-4, **options: Any) -> None:
    got = recognition.load(path, device="cpu", **options).embed(CROPS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_insightfaces_form_is_rgb(tmp_path: Path) -> None:
    path = write(tmp_path / "w600k_r50.onnx")
    model = recognition.load(path, device="cpu")
    assert (model.size, model.color, model.architecture.name) == (SIZE, "rgb", "onnx")
    close(path, expected())
    close(path, expected("bgr"), color="bgr")


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_fixed_batch(batch: int, tmp_path: Path) -> None:
    close(write(tmp_path / "a.onnx", batch=batch), expected())


def test_a_graph_that_normalizes_itself_gets_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", raw=True)
    model = recognition.load(path, device="cpu")
    assert (model.normalization.mean, model.normalization.std) == (0, 1)
    close(path, expected(std=128))


def test_half_precision(tmp_path: Path) -> None:
    close(write(tmp_path / "a.onnx", half=True), expected(), tolerance=3e-2)


def test_other_graphs_have_to_be_told_their_color_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", name=OTHER)
    with pytest.raises(ValueError, match="give --color rgb or --color bgr"):
        recognition.load(path)
    for color in ("rgb", "bgr"):
        close(path, expected(color), color=color)


def test_what_we_export_says_all_of_it(tmp_path: Path) -> None:
    """Its graph takes RGB even if the weights were trained on BGR: the network reverses them."""
    facts = ModelFacts(
        architecture=Part("ir", {"bgr": True}), size=SIZE, normalization=Normalization(100, 50)
    )
    path = write(tmp_path / "a.onnx", name=OTHER, metadata=facts_json(facts))
    model = recognition.load(path, device="cpu")
    assert (model.color, model.architecture.name) == ("bgr", "ir")
    close(path, expected("rgb", 100, 50))
    with pytest.raises(ValueError, match="its metadata says bgr, so leave out --color rgb"):
        recognition.load(path, color="rgb")
    other = facts_json(replace(facts, size=SIZE + 1))
    with pytest.raises(ValueError, match="its metadata says size 9, its input has 8"):
        recognition.load(write(tmp_path / "b.onnx", metadata=other))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"shape": (1, SIZE, SIZE)}, r"expected one of floats \(B,3,S,S\)"),
        ({"shape": (3, SIZE, 2 * SIZE)}, "expected a square input"),
        ({"outputs": ("a", "b")}, r"outputs a \['None', 4\], b .* expected a square input and one"),
    ],
)
def test_graphs_of_another_kind_are_refused(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.onnx", **change)
    with pytest.raises(ValueError, match=problem) as error:
        recognition.load(path)
    assert "\n" not in str(error.value)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs the package onnxruntime; pip install .*\[onnx\]"):
        recognition.load(path)


def test_a_graph_has_no_weights_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.onnx")
    assert import_weights.main([str(path), str(tmp_path / "out")]) == 2
    assert "is a graph without a backbone; use the file as it is" in capsys.readouterr().err
