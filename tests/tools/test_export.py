"""Exported folders: the file computes what the model computes, and the card says what is known."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from scipy.stats import binomtest
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import recognition
from recognition.config import Part
from recognition.models.facts import ModelFacts, Normalization
from recognition.models.model_folder import write_model_folder
from recognition.parse import build_part, load_config, to_yaml
from tests.backbones import installed_backbones
from tools import _onnx, export
from tools._model import ModelOptions
from tools._model_record import read_record, without_folders
from tools._recognizer import open_recognizer

ROOT = Path(__file__).parents[2]
SIZE = 32
# A new backbone is tested with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "iresnet": {"depth": 18, "width": 8, "embedding": 64},
    "ir": {"depth": 18, "width": 16, "embedding": 64, "se": True},
    "kprpe": {"landmarks": "template", "width": 32, "depth": 1, "heads": 2, "embedding": 64},
    "mobilefacenet": {"width": 16, "embedding": 64},
    "timm": {
        "model": "convnext_atto",
        "options": {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]},
        "embedding": 64,
    },
    "vit": {"width": 32, "depth": 1, "heads": 2, "patch": 8, "embedding": 64},
}
BACKBONES = installed_backbones()
RESULTS = [
    {
        "name": "my|pairs",
        "protocol": "pairs",
        "metrics": {
            "accuracy": 90.0,
            "accuracy_std": 1.0,
            "tar@0.001": None,
            "threshold": 1.4,
            "cosine@0.001": 0.41,
            "cosine_low@0.001": 0.4,
            "cosine_high@0.001": 0.42,
            "false_same@0.001": 0.0,
            "false_different@0.001": 9.0,
        },
        "settings": {"pairs": 500, "genuine": 250, "mirror": True},
        "notes": ["few pairs"],
        "skipped": None,
    },
    {
        "name": "rfw",
        "protocol": "groups",
        "metrics": {"accuracy_African": 80.0, "accuracy_Asian": 100.0, "accuracy": 90.0},
        "settings": {"groups": "African, Asian", "group_pairs": [100, 200]},
        "notes": [],
        "skipped": None,
    },
    {
        "name": "lfw",
        "protocol": "pairs",
        "metrics": {},
        "settings": {},
        "notes": [],
        "skipped": "/home-of-somebody/lfw.bin: no such file",
    },
]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return export.read_faces(None, SIZE)[0]


def trained(name: str, pixels: torch.Tensor, **options: Any) -> tuple[Any, Part]:
    """A seeded network whose batch norms know the drawn faces, as after a training."""
    torch.manual_seed(0)
    part = Part(name, {**SMALL.get(name, {}), **options})
    network: nn.Module = build_part("recognition.backbones", part, size=SIZE)
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        network.train()(pixels.float() / 127.5 - 1)
    return network.eval(), part


def model_folder(
    folder: Path, name: str, pixels: torch.Tensor, **options: Any
) -> tuple[nn.Module, ModelFacts]:
    network, part = trained(name, pixels, **options)
    facts = ModelFacts(architecture=part, size=SIZE, normalization=Normalization(127.5, 128))
    write_model_folder(folder, facts, network.state_dict(), "")
    return network, facts


def cosines(vectors: torch.Tensor | np.ndarray) -> np.ndarray:
    unit = np.asarray(vectors, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    found: np.ndarray = unit @ unit.T
    return found


def plain_onnx(file: Path, pixels: torch.Tensor) -> np.ndarray:
    """What a program of another project computes: no code of ours."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = (pixels.numpy().astype(np.float32) - 127.5) / 127.5
    found: np.ndarray = session.run(["embedding"], {"input": inputs})[0]
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_becomes_onnx(name: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    network, _ = model_folder(tmp_path / "model", name, pixels, bgr=True)
    out = tmp_path / "out"
    assert export.main([str(tmp_path / "model"), "--to", "onnx", "--out", str(out)]) == 0
    file = out / "model.onnx"
    # The network sees BGR, and (x - 127.5) / 128.
    with torch.inference_mode():
        expected = network((pixels.float() - 127.5) / 128).numpy()
    for rows in (1, 3, 64):
        np.testing.assert_allclose(
            plain_onnx(file, pixels[:rows]), expected[:rows], rtol=1e-3, atol=1e-4
        )
    assert np.abs(cosines(plain_onnx(file, pixels)) - cosines(expected)).max() <= 1e-4

    again = recognition.load(out, device="cpu")
    assert (again.size, again.color, again.architecture.name) == (SIZE, "bgr", name)
    np.testing.assert_allclose(again.embed(pixels).numpy(), expected, rtol=1e-3, atol=1e-4)
    written = onnx.load(file)
    assert written.opset_import[0].version >= 18
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    # Neither the folders of this machine nor its lines of code are in the file.
    assert str(ROOT).encode() not in file.read_bytes()


@pytest.mark.parametrize("name", ["ir", "vit"])  # an export takes seconds
def test_half_precision_with_mirror_and_norm_built_in(
    name: str, pixels: torch.Tensor, tmp_path: Path
) -> None:
    network, _ = model_folder(tmp_path / "model", name, pixels)
    out = tmp_path / "out"
    flags = ["--precision", "fp16", "--mirror", "--l2-norm", "--out", str(out)]
    assert export.main([str(tmp_path / "model"), "--to", "onnx", *flags]) == 0
    inputs = (pixels.float() - 127.5) / 128
    with torch.inference_mode():
        expected = network(inputs) + network(inputs.flip(3))
    found = plain_onnx(out / "model.onnx", pixels)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(pixels)), abs=1e-5)
    assert np.abs(cosines(found) - cosines(expected)).max() <= 5e-3
    weights = [one for one in onnx.load(out / "model.onnx").graph.initializer if len(one.dims) > 1]
    assert {one.data_type for one in weights} == {onnx.TensorProto.FLOAT16}
    assert found == pytest.approx(plain_onnx(out / "model.onnx", pixels.flip(3)), abs=1e-3)


@pytest.mark.parametrize("name", BACKBONES)
def test_safetensors_hold_the_same_bits(name: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    network, _ = model_folder(tmp_path / "model", name, pixels)
    options = [str(tmp_path / "model"), "--to", "safetensors", "--out"]
    assert export.main([*options, str(tmp_path / "out")]) == 0
    before, after = (
        recognition.load(tmp_path / folder, device="cpu") for folder in ("model", "out")
    )
    assert after.facts == before.facts
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in after.network.state_dict().items())
    assert torch.equal(after.embed(pixels), before.embed(pixels))

    assert export.main([*options, str(tmp_path / "half"), "--precision", "fp16"]) == 0
    sizes = [(tmp_path / one / "model.safetensors").stat().st_size for one in ("out", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    half = recognition.load(tmp_path / "half", device="cpu").embed(pixels)
    assert np.abs(cosines(half) - cosines(before.embed(pixels))).max() <= 5e-3


def test_a_file_that_computes_something_else_is_not_left(
    pixels: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Activations beyond 65,504, which float16 does not have. A layer norm follows them."""
    network, part = trained("vit", pixels)
    with torch.no_grad():
        network.patch_embed.proj.weight *= 1e6
    facts = ModelFacts(architecture=part, size=SIZE)
    write_model_folder(tmp_path / "model", facts, network.state_dict(), "")
    options = [str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "out")]
    assert export.main([*options, "--precision", "fp16"]) == 1
    message = capsys.readouterr().err
    assert "more than 0.005" in message
    assert "use --precision fp32" in message
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "out").mkdir()
    assert export.main(options) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_large_running_variance_fits_half_precision(pixels: torch.Tensor, tmp_path: Path) -> None:
    """float16 has no number as large as the variance, but the function of the norm stays."""
    network, _ = trained("mobilefacenet", pixels)
    inputs = pixels.float() / 127.5 - 1
    with torch.no_grad():
        before = network(inputs)
        conv, norm = network.layers[0].layers[:2]
        conv.weight *= 3e3
        norm.running_mean *= 3e3
        norm.running_var *= 9e6
        norm.eps *= 9e6
        assert norm.running_var.max() > 65504
        torch.testing.assert_close(network(inputs), before, rtol=1e-3, atol=1e-3)
        _onnx.fold_statistics(network)
        torch.testing.assert_close(network(inputs), before, rtol=1e-3, atol=1e-3)
    assert all(
        float(value.abs().max()) < 65504
        for value in network.state_dict().values()
        if value.is_floating_point()
    )


def test_differences_are_never_overlooked() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(64, 8)).astype(np.float32)
    other = one.copy()
    other[5] = -one[5]
    assert export.largest_difference(one, 3 * one) < 1e-7
    expected = max(2 * abs(cosines(one)[5, i]) for i in range(64) if i != 5)
    assert export.largest_difference(one, other) == pytest.approx(expected)
    other[7, 0] = np.nan
    assert not export.largest_difference(one, other) <= 1e9


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, pixels: torch.Tensor) -> Path:
    """A run as train.py leaves it, with an evaluation."""
    folder = tmp_path_factory.mktemp("home-of-somebody") / "mine"
    folder.mkdir()
    config = load_config(
        ROOT / "configs/faces_cpu.yaml",
        [
            f"data.size={SIZE}",
            "data.size_schedule=null",
            f"data.root={folder.parent}/photos",
            "data.train=/secret/place/people.rec",
            f"backbone={json.dumps({'name': 'vit', **SMALL['vit']})}",
            f"run.output={folder}",
        ],
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    network, _ = trained("vit", pixels)
    torch.save(network.state_dict(), folder / "model.pt")
    environment = {
        "command": ["/home-of-somebody/train.py"],
        "git": "v1-2-gabc",
        "torch": "2.8.0",
        "training_set": {"images": 5998, "identities": 291},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "results.json").write_text(json.dumps({"published": None, "results": RESULTS}))
    return folder


@pytest.fixture(scope="module")
def exported(run_folder: Path) -> dict[str, Path]:
    """Both forms; the ONNX file is made of the exported folder, whose record it inherits."""
    folders = {form: run_folder.parent / form for form in ("safetensors", "onnx")}
    first = [str(run_folder), "--to", "safetensors", "--license", "cc-by-nc-4.0"]
    assert export.main([*first, "--name", "Mine", "--out", str(folders["safetensors"])]) == 0
    second = [str(folders["safetensors"]), "--to", "onnx", "--out", str(folders["onnx"])]
    assert export.main([*second, "--name", "Mine"]) == 0
    return folders


def test_card_is_what_the_hub_expects(exported: dict[str, Path]) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported["safetensors"] / "README.md").data
    assert (card.license, card.pipeline_tag) == ("cc-by-nc-4.0", "image-feature-extraction")
    assert {"face-recognition", "safetensors"} <= set(card.tags or [])
    figures = {
        (one.dataset_name, one.metric_type): one.metric_value for one in card.eval_results or []
    }
    assert figures == {
        ("my|pairs", "accuracy"): 90.0,
        ("rfw", "accuracy_African"): 80.0,
        ("rfw", "accuracy_Asian"): 100.0,
        ("rfw", "accuracy"): 90.0,
    }
    bare = yaml.safe_load((exported["onnx"] / "README.md").read_text().split("---\n")[1])
    assert bare["license"] == "other"
    names = {path.name for path in exported["onnx"].iterdir()}
    assert names == {"README.md", "model.onnx", "results.json", "training.json"}


def test_card_says_what_is_known(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        text = (folder / "README.md").read_text()
        for said in (
            "people.rec, 5,998 images of 291 people",
            "revision of the code: v1-2-gabc; torch 2.8.0",
            "cosface (margin 0.2",
            "few pairs",
            "a cosine of 0.300 as the threshold, where the embedding of the mirror image is added",
            "threshold 0.4100 at a false accept rate of 0.001, 90 % interval 0.4000 to 0.4200",
            "RFW, in the table above",
            "## Intended use",
            "## Limits",
            "Article 9 of the GDPR",
            "2,016 pairs differ by at most",
        ):
            assert said in text, said
        for rate, trials, shown in ((0.9, 500, "90.00"), (0.8, 100, "80.00"), (1, 200, "100.00")):
            ends = binomtest(round(rate * trials), trials).proportion_ci(method="wilson")
            low, high = 100 * ends.low, 100 * ends.high
            assert f"| {shown} | {low:.2f} to {high:.2f} | {trials} |" in text
        for path in folder.iterdir():
            content = path.read_bytes()
            assert b"home-of-somebody" not in content, path.name
            assert b"/secret" not in content, path.name


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_the_threshold_goes_with_the_folder(form: str, exported: dict[str, Path]) -> None:
    found = open_recognizer(ModelOptions(model=str(exported[form]), device="cpu")).evaluation
    assert found is not None
    assert (found.threshold, found.impostors) == (0.41, 250)


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_code_of_the_card_runs(
    form: str,
    exported: dict[str, Path],
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(1)
    crops = [cv2.resize(rng.integers(0, 256, (7, 7, 3), np.uint8), (112, 112)) for _ in "ab"]
    for name, crop in zip("ab", crops, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), crop)
    (code,) = re.findall(
        r"```python\n(.*?)```", (exported[form] / "README.md").read_text(), re.DOTALL
    )
    code = code.replace('"model.onnx"', repr(str(exported[form] / "model.onnx")))
    code = code.replace('"FOLDER"', repr(str(exported[form])))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "card.py"))
    shown = float(capsys.readouterr().out.split(":")[1])
    model = recognition.load(run_folder, device="cpu")
    expected = cosines(model.embed([tmp_path / "a.png", tmp_path / "b.png"]))[0, 1]
    assert shown == pytest.approx(expected, abs=0.02)  # the run computes in bfloat16


def test_card_of_weights_without_a_record(pixels: torch.Tensor, tmp_path: Path) -> None:
    model_folder(tmp_path / "model", "mobilefacenet", pixels)
    (tmp_path / "results.json").write_text("not of this model")
    out = tmp_path / "out"
    file = str(tmp_path / "model/model.safetensors")
    assert export.main([file, "--to", "safetensors", "--out", str(out)]) == 0
    text = (out / "README.md").read_text()
    assert "Not known: the weights came without a record" in text
    assert "was not evaluated" in text
    assert "This was not measured here" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--to", "safetensors", "--mirror"], "use --to onnx"),
        (["--to", "onnx", "--faces", "synthetic:identities=2,images=2"], "the check needs 64"),
        (["--to", "onnx", "--color", "bgr"], "leave out --color"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    problem: str,
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export.main([str(run_folder), *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_extra_is_named_where_it_is_missing(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(_onnx, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert export.main([str(run_folder), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "needs onnxscript; install the extra: pip install -e '.[onnx]'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{"),
        ("results.json", '{"results": 3}'),
        ("results.json", '{"results": [{"name": "x", "metrics": [1]}]}'),
        ("training.json", '{"config": {"head": "arcface"}, "environment": {}}'),
        ("training.json", '{"config": {}, "environment": {"training_set": {"images": "x"}}}'),
        ("training.json", "[]"),
    ],
)
def test_a_damaged_record_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="damaged") as error:
        read_record(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("/home/me/faces/a.rec", "a.rec"),
        ("~/a.rec", "a.rec"),
        ("../me/a.rec", "a.rec"),
        ("C:\\Users\\me\\a.rec", "a.rec"),
        ("\\\\server\\me\\a.rec", "a.rec"),
        ("sets/a.rec", "sets/a.rec"),
        ("concat:/home/me/a.rec;b.rec;/me/c", "concat:a.rec;b.rec;c"),
        ("subset:/home/me/a.npy;/me/c.rec", "subset:a.npy;c.rec"),
        ("concat:subset:/home/me/a.npy;/me/c.rec;b", "concat:subset:a.npy;c.rec;b"),
        ("synthetic:identities=2", "synthetic:identities=2"),
        ([{"root": "/home/me"}, None, 3], [{"root": "me"}, None, 3]),
    ],
)
def test_folders_of_the_machine_are_left_out(written: Any, shown: Any) -> None:
    assert without_folders(written) == shown
