"""recognition.load: every published form, what is asked for, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import recognition
from eval.__main__ import main as evaluate
from recognition.config import Part
from recognition.models.model import Model
from recognition.parse import build_part, load_config, to_yaml
from tools import import_weights

HERE = Path(__file__).parent
FORMS = SimpleNamespace(**runpy.run_path(str(HERE / "forms.py")))
GOLDEN: dict[str, Any] = json.loads((HERE.parent / "backbones/genuine.json").read_text())
QUICKSTART = HERE.parents[2] / "configs/quickstart.yaml"
PLAIN = ["run.precision=fp32", "run.channels_last=false"]
FULL = {
    **{
        f"insightface r{depth}": FORMS.iresnet(blocks)
        for depth, blocks in {
            18: (2, 2, 2, 2),
            34: (3, 4, 6, 3),
            50: (3, 4, 14, 3),
            100: (3, 13, 30, 3),
            200: (6, 26, 60, 6),
        }.items()
    },
    "insightface mbf": FORMS.mobilefacenet(),
    "f2c mobile": FORMS.mobilefacenet_small(),
    "insightface vit tiny": FORMS.vit(256, 12),
    "insightface vit small": FORMS.vit(512, 12),
    "insightface vit base": FORMS.vit(512, 24),
    "insightface vit large": FORMS.vit(768, 24),
    "adaface ir_18": FORMS.ir((2, 2, 2, 2)),
    "adaface ir_34": FORMS.ir((3, 4, 6, 3)),
    "adaface ir_50": FORMS.ir((3, 4, 14, 3)),
    "adaface ir_101": FORMS.ir((3, 13, 30, 3)),
    "adaface ir_se_18": FORMS.ir((2, 2, 2, 2), se=True),
    "adaface ir_se_50": FORMS.ir((3, 4, 14, 3), se=True),
    "adaface ir_se_101": FORMS.ir((3, 13, 30, 3), se=True),
}
TINY = {"width": 8, "side": 2, "out": 16}
IRESNET = FORMS.drawn(FORMS.iresnet((2, 2, 2, 2), **TINY))
IR = FORMS.drawn(FORMS.ir((2, 2, 2, 2), **TINY))
STATES = {
    "iresnet": IRESNET,
    "ir": IR,
    "ir se": FORMS.drawn(FORMS.ir((2, 2, 2, 2), se=True, width=16, side=2, out=16)),
    "mobilefacenet": FORMS.drawn(FORMS.mobilefacenet(**TINY)),
    "mobilefacenet_small": FORMS.drawn(FORMS.mobilefacenet_small(**TINY)),
    "vit": FORMS.drawn(FORMS.vit(32, 3, patch=9, grid=3, out=16)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "iresnet": {"depth": 18, "width": 8, "embedding": 16},
    "ir": {"depth": 18, "se": False, "width": 8, "embedding": 16},
    "ir se": {"depth": 18, "se": True, "width": 16, "embedding": 16},
    "mobilefacenet": {"width": 8, "embedding": 16},
    "mobilefacenet_small": {"width": 8, "embedding": 16},
    "vit": {"width": 32, "depth": 3, "heads": 8, "patch": 9, "mlp": 4, "embedding": 16},
}
SIZES = {"vit": 27}
CROPS = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def embeddings(name: str, state: dict[str, torch.Tensor], color: str, std: float = 127.5) -> Any:
    """What the network computes on the RGB crops, with the channels in its own order."""
    net = build_part("recognition.backbones", Part(name.split()[0], OPTIONS[name]), size=size(name))
    net.load_state_dict({key: value.float() for key, value in state.items()})
    pixels = (crops(name).flip(1) if color == "bgr" else crops(name)).float()
    # As arcface_torch, AdaFace and CVLface write it, and as F²C does.
    scaled = pixels.div(255).sub(0.5).div(0.5) if std == 127.5 else (pixels - 127.5) * 0.0078125
    with torch.no_grad():
        return net.eval()(scaled)


def size(name: str) -> int:
    return SIZES.get(name, 32)


def crops(name: str) -> torch.Tensor:
    return CROPS[:, :, : size(name), : size(name)].contiguous()


def loaded(path: Path, **options: Any) -> Model:
    return recognition.load(path, device="cpu", **options)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", FULL)
def test_the_lists_are_those_of_the_genuine_classes(name: str) -> None:
    lines = sorted(f"{key} {list(shape)}" for key, shape in FULL[name].items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == GOLDEN[name]["sha256"]


@pytest.mark.parametrize("name", FULL)
def test_the_published_networks_are_recognized(name: str) -> None:
    from recognition.models.recognize import find_backbone

    tree = {key: torch.empty(shape, device="meta") for key, shape in FULL[name].items()}
    module, options = GOLDEN[name]["module"], GOLDEN[name]["options"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recognition.models.recognize.fit_state", lambda network, state: state)
        found = find_backbone(tree, 1 << 40, "file")
    assert found.architecture.name == module
    assert options.items() <= found.architecture.options.items()
    assert (found.size, found.prefix, found.ignored) == (112, "", ())


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_every_network_is_recognized_and_computes_the_same(
    name: str, color: str, tmp_path: Path
) -> None:
    torch.save(STATES[name], tmp_path / "weights.pt")
    model = loaded(tmp_path / "weights.pt", color=color)
    assert model.architecture.name == name.split()[0]
    assert model.architecture.options == {**OPTIONS[name], "bgr": color == "bgr"}
    assert (model.size, model.color) == (size(name), color)
    assert torch.equal(model.embed(crops(name)), embeddings(name, STATES[name], color))
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


class AttributeDict(dict[str, Any]):
    """Stands for the class of Lightning in which it pickles settings."""


ADAFACE_HEAD = {
    "head.kernel": torch.zeros(16, 5),
    "head.t": torch.zeros(1),
    "head.batch_mean": torch.zeros(1),
    "head.batch_std": torch.zeros(1),
}
LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "1.4.4",
    "state_dict": {**prefixed("model.", IR), **ADAFACE_HEAD},
    "hyper_parameters": AttributeDict(arch="ir_18", m=0.4),
    "callbacks": {AttributeDict: {"monitor": "val_acc", "path": Path("here"), "n": Counter("ab")}},
    "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []}],
}
ARCFACE_CHECKPOINT = {
    "epoch": 2,
    "global_step": 10,
    "state_dict_backbone": IRESNET,
    "state_dict_softmax_fc": {"weight": torch.zeros(5, 16)},
    "state_optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
    "state_lr_scheduler": {"last_epoch": 3},
}
F2C = {"lru": {1: 2}, "fc": torch.zeros(1, 16, 9), "qp": {4: 5}}
# name of the form: file name, content, network, color order
PUBLISHED: dict[str, tuple[str, Any, str, str]] = {
    "arcface_torch": ("model.pt", IRESNET, "iresnet", "rgb"),
    "DataParallel": ("backbone.pth", prefixed("module.", IRESNET), "iresnet", "rgb"),
    "compiled": ("model.pt", prefixed("module._orig_mod.", IRESNET), "iresnet", "rgb"),
    "its checkpoint": ("checkpoint_gpu_1.pt", ARCFACE_CHECKPOINT, "iresnet", "rgb"),
    "in an OrderedDict": ("model.pt", OrderedDict(IRESNET), "iresnet", "rgb"),
    "with its head": ("m.pt", {**IRESNET, "head.kernel": torch.zeros(3)}, "iresnet", "rgb"),
    "mbf": ("mbf.pt", STATES["mobilefacenet"], "mobilefacenet", "rgb"),
    "vit": ("vit.pt", STATES["vit"], "vit", "rgb"),
    "AdaFace": ("adaface_ir18.ckpt", LIGHTNING, "ir", "bgr"),
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_forms_need_no_option(form: str, tmp_path: Path) -> None:
    file, content, name, color = PUBLISHED[form]
    torch.save(content, tmp_path / file)
    model = loaded(tmp_path / file)
    assert model.color == color
    assert torch.equal(model.embed(crops(name)), embeddings(name, STATES[name], color))


@pytest.mark.parametrize("name", ["iresnet", "mobilefacenet_small"])
def test_f2c_has_its_own_normalization(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": STATES[name], **F2C}, tmp_path / "7.pt")
    model = loaded(tmp_path / "7.pt")
    assert (model.color, model.normalization.std) == ("bgr", 128)
    expected = embeddings(name, STATES[name], "bgr", 128)
    assert torch.equal(model.embed(CROPS), expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_of_any_age_and_type(legacy: bool, tmp_path: Path) -> None:
    old = {key: value for key, value in IRESNET.items() if "tracked" not in key}
    half = {key: value.half() for key, value in old.items()}
    path = tmp_path / "old.pth"
    torch.save(half, path, _use_new_zipfile_serialization=not legacy)
    model = loaded(path)
    zeros = {key: value * 0 for key, value in IRESNET.items() if "tracked" in key}
    expected = embeddings("iresnet", {**half, **zeros}, "rgb")
    assert torch.equal(model.embed(CROPS), expected)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATES["mobilefacenet"], tmp_path / "mbf.safetensors")
    model = loaded(tmp_path / "mbf.safetensors")
    assert model.architecture.name == "mobilefacenet"
    state = model.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in STATES["mobilefacenet"].items())


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "net.", "model.net.", "features.module."]
)
@pytest.mark.parametrize("name", ["ir", "iresnet", "mobilefacenet_small"])
def test_the_color_order_is_asked_for_where_nothing_says_it(
    name: str, prefix: str, tmp_path: Path
) -> None:
    if name == "iresnet" and prefix in ("", "module."):
        return  # arcface_torch's form
    path = tmp_path / "weights.pt"
    torch.save({**prefixed(prefix, STATES[name]), "fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="RGB or BGR; give --color rgb or --color bgr") as error:
        loaded(path)
    assert "\n" not in str(error.value)
    for color in ("rgb", "bgr"):
        expected = embeddings(name, STATES[name], color)
        got = loaded(path, color=color).embed(CROPS)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("space", ["RGB", "BGR"])
@pytest.mark.parametrize("beside", ["model.yaml", "config.json"])
def test_cvlface_says_its_color_order_beside_the_weights(
    space: str, beside: str, tmp_path: Path
) -> None:
    settings = {"name": "ir18", "color_space": space, "output_dim": 16}
    if beside == "model.yaml":
        torch.save(prefixed("net.", IR), tmp_path / "model.pt")
        (tmp_path / "config.yaml").write_text("models: [ir18]")  # not that of a run of ours
        (tmp_path / beside).write_text(yaml.safe_dump(settings))
    else:
        save_file(prefixed("model.net.", IR), tmp_path / "model.safetensors")
        (tmp_path / beside).write_text(json.dumps({"conf": settings}))
    color, other = ("rgb", "bgr") if space == "RGB" else ("bgr", "rgb")
    model = loaded(tmp_path)
    assert model.color == color
    expected = embeddings("ir", IR, color)
    assert torch.equal(model.embed(CROPS), expected)
    with pytest.raises(ValueError, match=rf"{beside} says {color}, so leave out --color {other}"):
        loaded(tmp_path, color=other)


def test_cvlfaces_transformers_have_their_own_heads(tmp_path: Path) -> None:
    shapes = FORMS.vit(32, 2, patch=8, grid=2, mlp=3, out=16)
    del shapes["mask_token"]
    torch.save(prefixed("net.", FORMS.drawn(shapes)), tmp_path / "model.pt")
    options = loaded(tmp_path / "model.pt", color="rgb").architecture.options
    assert (options["heads"], options["mlp"], options["patch"]) == (16, 3, 8)


def test_a_run_folder(tmp_path: Path) -> None:
    part = "backbone={name: ir, depth: 18, width: 8, embedding: 16, bgr: true}"
    config = load_config(QUICKSTART, [part, "data.size=32", *PLAIN])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(FileNotFoundError, match=r"model\.pt: not found, although config\.yaml is"):
        loaded(tmp_path)
    torch.save(IR, tmp_path / "model.pt")
    for source in (tmp_path, tmp_path / "model.pt"):
        model = loaded(source)
        assert (model.size, model.color) == (32, "bgr")
        assert torch.equal(model.embed(CROPS), embeddings("ir", IR, "bgr"))
    with pytest.raises(ValueError, match=r"config\.yaml says bgr, so leave out --color rgb"):
        loaded(tmp_path, color="rgb")
    torch.save(IRESNET, tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"not the weights of ir in config\.yaml: it lacks"
    ) as told:
        loaded(tmp_path)
    assert len(str(told.value)) < 400


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"width": 1 << 62}, "there is no iresnet with its options"),
        ({"width": 1 << 20}, "it has conv1.weight float"),
        ({"embedding": 10**30}, "there is no iresnet with its options"),
        ({"name": "vit", "depth": 10**9}, "depth: found 1000000000, expected .*at most 1000"),
    ],
)
def test_a_folder_that_lies_about_its_network_gets_no_memory(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    save_file(IRESNET, tmp_path / "model.safetensors")
    architecture = {"name": "iresnet", "depth": 18, **options}
    if options.get("name"):
        del architecture["depth"]
        architecture |= options
    facts = {"version": 1, "architecture": architecture, "size": 32, "color": "rgb"}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=problem) as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value)


WIDE = {**IRESNET, "fc.weight": torch.zeros(16, 200)}
REFUSED: dict[str, tuple[Any, str]] = {
    "left over": ({**IRESNET, "extra.weight": torch.zeros(2)}, "no place for extra.weight"),
    "left over within": (
        {**IRESNET, **{f"layer1.0.se.{i}": torch.zeros(2) for i in range(40)}},
        r"no place for layer1\.0\.se\.0, .* and 37 more",
    ),
    "missing": ({k: v for k, v in IRESNET.items() if "fc" not in k}, "iresnet, but it lacks fc"),
    "without a norm": (
        {k: v for k, v in IRESNET.items() if ".bn2." not in k},
        r"it lacks layer1\.0\.bn2\.weight, .* more",
    ),
    "another shape": (
        {**IRESNET, "bn1.bias": torch.zeros(9)},
        r"it has bn1\.bias float \(9,\) instead of float \(8,\)",
    ),
    "another map": (WIDE, "iresnet, but the last map has 3 cells, which form no square"),
    "whole numbers": ({**IRESNET, "bn1.bias": torch.zeros(8).int()}, r"int \(8,\) instead of"),
    "another depth": (
        {k: v for k, v in IRESNET.items() if not k.startswith("layer3.1")},
        r"its stages have \(2, 2, 1, 2\) blocks, and an iresnet has .*\(2, 2, 2, 2\) for 18",
    ),
    "two": ({"a": IRESNET, "b": IRESNET}, "holds several backbones, iresnet at '' and iresnet"),
    "another network": ({"conv1.weight": torch.zeros(8, 3, 7, 7)}, "holds no backbone that is her"),
    "no tensors": ({"epoch": 3}, "it has no tensors"),
    "no mapping": ([torch.zeros(3)], "holds a list, expected tensors by name"),
    "one tensor": (torch.zeros(3), "holds a Tensor, expected tensors by name"),
    "a claim": ({**IRESNET, "fc.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, "claim"),
    "a sparse one": ({**IRESNET, "fc.bias": torch.zeros(16).to_sparse()}, "no plain tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named_in_one_short_line(case: str, tmp_path: Path) -> None:
    content, problem = REFUSED[case]
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=problem) as error:
        loaded(path)
    told = str(error.value)
    assert told.startswith(f"{path}: ")
    assert "\n" not in told
    assert len(told) < 500


class Trap:
    """Unpickling it would call the function that it names."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, exec, Path.touch, print, open])
def test_nothing_in_a_file_is_executed(
    function: Callable[..., Any], legacy: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sprung = tmp_path / "sprung"
    arguments: dict[Any, tuple[Any, ...]] = {
        os.mkdir: (str(sprung),),
        os.system: (f"touch {sprung}",),
        eval: (f"__import__('os').mkdir({str(sprung)!r})",),
        exec: (f"__import__('os').mkdir({str(sprung)!r})",),
        Path.touch: (sprung,),
        print: ("sprung",),
        open: (str(sprung), "w"),
    }
    content = {**IRESNET, "head.x": Trap(function, *arguments[function])}
    path = tmp_path / "evil.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    try:
        loaded(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017  # it may also be loaded without harm
    assert not sprung.exists()
    assert capfd.readouterr().out == ""


def test_a_file_gets_no_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    path = tmp_path / "claims.pth"
    torch.save({"fc.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    honest = path.read_bytes()
    claim = honest.replace((1000).to_bytes(2, "little"), (65_000).to_bytes(2, "little"))
    assert claim != honest
    path.write_bytes(claim)
    with pytest.raises(ValueError, match=r"its tensors claim 65,000 numbers"):
        loaded(path)


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors", "a.onnx"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4 nothing", b"\x80\x02}q\0.", b"\xff" * 100])
def test_damaged_files_are_refused_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.*: ") as error:
        loaded(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        path = tmp_path / name
        (save_file if name == "a.safetensors" else torch.save)(IRESNET, path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match="not a readable weights file"):
            loaded(path)


def test_sources_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing: not found; a model is a run folder"):
        loaded(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="not one file of weights, but none"):
        loaded(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt: expected a name that ends in \.pt, \.pth"):
        loaded(tmp_path / "a.txt")
    for name in ("a.pt", "b.pt"):
        torch.save(IRESNET, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"but a\.pt, b\.pt; give"):
        loaded(tmp_path)
    for name in ("a.pt", "a.safetensors", "a.onnx"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError), match=r"a\.\w+: "):
            loaded(tmp_path / name)


def test_an_imported_model_folder_is_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(LIGHTNING, tmp_path / "ada.ckpt")
    out = tmp_path / "models/ada"
    assert import_weights.main([str(tmp_path / "ada.ckpt"), str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["architecture"]["depth"] == 18
    assert record["color"] == "bgr"
    written = {path.name for path in out.iterdir()}
    assert written == {"model.safetensors", "model.json", "README.md"}
    for source in (out, out / "model.safetensors"):
        model = loaded(source)
        assert model.color == "bgr"
        assert torch.equal(model.embed(CROPS), loaded(tmp_path / "ada.ckpt").embed(CROPS))
    state = model.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in IR.items())
    digest = hashlib.sha256((tmp_path / "ada.ckpt").read_bytes()).hexdigest()
    assert digest in (out / "README.md").read_text()
    assert import_weights.main([str(tmp_path / "ada.ckpt"), str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert import_weights.main([str(out), str(out), "--color", "rgb"]) == 2
    assert "model.json says bgr" in capsys.readouterr().err


def test_commands_take_the_same_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for at, crop in enumerate(CROPS):
        cv2.imwrite(str(photos / f"{at}.png"), crop.permute(1, 2, 0).numpy()[:, :, ::-1])
    torch.save(LIGHTNING, tmp_path / "ada.ckpt")
    torch.save(IR, tmp_path / "bare.pt")
    to = tmp_path / "x.npy"
    words = ["embed", "--data", str(photos), "--to", str(to), "--device", "cpu"]
    assert evaluate([*words, "--model", str(tmp_path / "bare.pt")]) == 2
    assert "give --color rgb or --color bgr" in capsys.readouterr().err
    both = embeddings("ir", IR, "bgr")
    for source in (["ada.ckpt"], ["bare.pt", "--color", "bgr"]):
        chosen = ["--model", str(tmp_path / source[0]), *source[1:]]
        assert evaluate([*words, "--no-mirror", *chosen]) == 0
        np.testing.assert_array_equal(np.load(to), both.numpy())
    given = ["--model", str(tmp_path / "bare.pt"), "--color", "bgr", "--device", "cpu"]
    faces = ["--faces", "synthetic:identities=40,images=2,size=32", "--count", "20"]
    assert evaluate(["pairs", "--name", "drawn", *faces, *given]) == 0
    assert "drawn" in capsys.readouterr().out


def test_importing_recognition_does_no_work() -> None:
    code = "import sys, recognition; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[2])
