"""Networks of timm as backbones, against timm's own network and a literal embedding layer."""

from __future__ import annotations

import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import recognition
from recognition import checkpoint, experiment
from recognition.backbones.timm import TimmBackbone, build, load_pretrained
from recognition.config import ConfigError, Part
from recognition.parse import load_config
from tests.recognition.test_init import _newest, _state
from tools._backbone import trace

timm: Any = pytest.importorskip("timm")
SIZE = 32
FAMILIES: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]},
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
    "swin_tiny_patch4_window7_224": {
        "depths": [1, 1, 2],
        "embed_dim": 8,
        "num_heads": [1, 1, 2],
        "patch_size": 2,
    },
    "mobilenetv4_conv_small_035": {},
}
VIT = "vit_tiny_patch16_224"
PADDED = {"dynamic_img_size": True, "dynamic_img_pad": True}
CONFIG = """
data: {train: "synthetic:identities=4,images=6", size: 32, threads: 1}
head: {name: arcface, scale: 16}
optim: {lr: 0.05, batch_size: 8, epochs: 2}
scheduler: {name: constant}
run: {output: unused, log_steps: 1, device: cpu, checkpoint_steps: 1, keep: 9}
"""


def small(model: str, **options: Any) -> TimmBackbone:
    return build(SIZE, model=model, options=FAMILIES[model], embedding=16, **options)


def trained(net: TimmBackbone) -> TimmBackbone:
    """Batch norms that know some images, and gates that are not at zero, as after a training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        for _ in range(20):
            net.train()(torch.randn(8, 3, SIZE, SIZE, generator=generator))
    return net.eval()


@pytest.mark.parametrize("pool", ["flatten", "timm"])
@pytest.mark.parametrize("model", FAMILIES)
def test_an_embedding_is_that_of_timms_network_on_its_own_pixels(model: str, pool: Any) -> None:
    net = trained(small(model, pool=pool)).double()
    pixels = torch.randint(256, (3, 3, SIZE, SIZE)).double()
    whole = timm.data.resolve_model_data_config(net.net)
    mean, std = (torch.tensor(whole[key]).double()[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        out = net.net((pixels / 255 - mean) / std)
        found = net((pixels - 127.5) / 127.5)
        if out.ndim == 3 or (model.startswith("swin") and out.ndim == 4):
            out = out.movedim(-1, 1)
        values = out.reshape(3, out.shape[1], -1).clone()
        norm: Any = net.to_embedding.norm
        for channel in range(values.shape[1]):
            shifted = values[:, channel] - norm.running_mean[channel]
            scale = norm.weight[channel] / math.sqrt(norm.running_var[channel] + norm.eps)
            values[:, channel] = shifted * scale + norm.bias[channel]
        last: Any = net.to_embedding.features
        rows = values.flatten(1) @ net.to_embedding.linear.weight.T
        expected = (rows - last.running_mean) / (last.running_var + last.eps).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # buffers are float32 first
    assert (pool == "timm") == (out.ndim == 2)


@pytest.mark.parametrize("model", FAMILIES)
def test_each_family_trains_and_can_be_planned(model: str) -> None:
    net = trained(small(model)).train()
    images = torch.randn(4, 3, SIZE, SIZE)
    (net(images) * torch.linspace(-1, 1, 16)).square().sum().backward()
    without = [name for name, one in net.named_parameters() if one.grad is None]
    assert without == []
    options = {"model": model, "options": FAMILIES[model], "embedding": 16}
    plain = trace(Part("timm", options), 4, SIZE, "fp32")
    light = trace(Part("timm", {**options, "checkpoint": True}), 4, SIZE, "fp32")
    assert sum(plain.parameters) == sum(4 * one.numel() for one in net.parameters())
    assert sum(light.activations) < sum(plain.activations)
    assert plain.multiply_adds == light.multiply_adds > 0


@pytest.mark.parametrize("model", FAMILIES)
def test_blocks_that_are_computed_again_change_no_number(model: str) -> None:
    plain = trained(small(model))
    light = small(model, checkpoint=True)
    light.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, SIZE, SIZE)
    for net in (plain, light):
        torch.manual_seed(0)
        (net.train()(images) * torch.linspace(-1, 1, 16)).square().sum().backward()
    for one, two in zip(plain.parameters(), light.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, light.state_dict()[name], msg=name)


@pytest.mark.parametrize("model", ["pit_ti_224", "inception_v3"])  # no group_matcher; a function
def test_a_network_whose_blocks_have_no_names_is_refused(model: str) -> None:
    with (
        pytest.raises(ValueError, match=f"^backbone.checkpoint: {model} has no blocks that timm"),
        torch.device("meta"),
    ):
        build(96, model=model, embedding=8, checkpoint=True)


def _weights(folder: Path, **changed: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file with all weights of timm's ViT for 64 pixels, its classifier included."""
    options = {**FAMILIES[VIT], "img_size": 64, **changed}
    state: dict[str, torch.Tensor] = timm.create_model(VIT, **options).state_dict()
    save_file(state, folder / "vit.safetensors")
    return folder / "vit.safetensors", state


def test_weights_come_from_a_file_and_fit_the_size(tmp_path: Path) -> None:
    file, state = _weights(tmp_path)
    torch.save(
        {"epoch": 1, "model": {f"module.{k}": v for k, v in state.items()}},
        file.with_suffix(".pth"),
    )
    for source in (file, file.with_suffix(".pth")):
        net = small(VIT)
        options = {"model": VIT, "options": FAMILIES[VIT], "resize": None, "pool": "flatten"}
        told = load_pretrained(net, str(source), options, SIZE)
        assert "minus (0.500, 0.500, 0.500), divided by (0.500, 0.500, 0.500)" in told
        assert "; not loaded: 2 others of the file, first head." in told
        found = net.net.state_dict()
        assert "head.weight" not in found
        for name in found.keys() - {"pos_embed"}:
            assert torch.equal(found[name], state[name]), name
        assert (state["pos_embed"].shape[1], found["pos_embed"].shape[1]) == (65, 17)


def test_a_file_that_does_not_hold_the_model_is_refused(tmp_path: Path) -> None:
    file, state = _weights(tmp_path)
    options = {"model": VIT, "options": FAMILIES[VIT], "resize": None, "pool": "flatten"}
    del state["blocks.1.norm1.bias"]
    save_file(state, file)
    with pytest.raises(ValueError, match=r"vit.safetensors lacks blocks\.1\.norm1\.bias of vit_"):
        load_pretrained(small(VIT), str(file), options, SIZE)
    file, _ = _weights(tmp_path, embed_dim=32)
    with pytest.raises(
        ValueError, match=r"vit.safetensors does not fit: .*size mismatch"
    ) as caught:
        load_pretrained(small(VIT), str(file), options, SIZE)
    assert "\n" not in str(caught.value)


def test_names_of_a_wrapper_are_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, state = _weights(tmp_path)
    save_file({f"backbone.{name}": tensor for name, tensor in state.items()}, file)
    first = min(f"backbone.{name}" for name in state)
    options = {"model": VIT, "options": FAMILIES[VIT], "resize": None, "pool": "flatten"}
    told = (
        rf"^backbone.weights: .* lacks .*, and {len(state)} of its names are others, first {first};"
    )
    level = logging.getLogger("timm").level
    with pytest.raises(ValueError, match=told):
        load_pretrained(small(VIT), str(file), options, SIZE)
    assert caplog.messages == []
    assert logging.getLogger("timm").level == level


def test_an_unreadable_file_is_told_with_its_key(tmp_path: Path) -> None:
    options = {"model": VIT, "options": FAMILIES[VIT], "resize": None, "pool": "flatten"}
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    for file, told in ((tmp_path / "no.pth", "No such file"), (damaged, "not a readable weights")):
        with pytest.raises(ValueError, match=rf"^backbone.weights: {file}: {told}"):
            load_pretrained(small(VIT), str(file), options, SIZE)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "convnext_nan"}, "'convnext_nan'; did you mean convnext_nano"),
        ({"model": "hf-hub:timm/resnet18"}, "timm has no 'hf-hub:timm/resnet18'"),
        ({"model": "resnet18.nobody"}, "timm has no 'resnet18.nobody'"),
        ({"options": {"pretrained": True}}, r"options.pretrained: can't be set"),
        ({"options": {"checkpoint_path": "a.pth"}}, r"options.checkpoint_path: can't be set"),
        ({"options": {"dims": [10**9]}}, r"options.dims: found '\[1000000000\]'"),
        ({"options": {"deep": {"file": "x"}}}, r"options.deep: found"),
        ({"options": {"nothing": 1}}, "can't build convnext_nano for 32 pixels: .*'nothing'"),
        ({"mean": [0.5]}, r"mean: found \[0.5\], expected three numbers"),
        (
            {"model": "maxvit_pico_rw_256", "resize": 112},
            "maxvit_pico_rw_256 takes no images of 112 pixels: .*backbone.resize=128",
        ),
    ],
)
def test_what_timm_can_not_build_is_told_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        build(SIZE, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "given", "works"),
    [
        (112, {"model": "inception_next_atto"}, "pool=timm"),
        (112, {"model": "twins_pcpvt_small"}, "resize=128 resize=224"),
        (112, {"model": "efficientformer_l1"}, "resize=224"),
        (32, {"model": VIT, "options": {"patch_size": 64}}, "resize=64"),
        (32, {"model": VIT, "options": {"embed_dim": 25}}, ""),  # heads that do not divide it
    ],
)
def test_an_error_names_only_what_works(size: int, given: dict[str, Any], works: str) -> None:
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"; (what works|it can't be built)") as caught:
            build(size, embedding=8, **given)
        named = re.findall(r"backbone\.((?:pool|resize)=\w+)", str(caught.value))
        assert named == works.split()
        for key, value in (one.split("=") for one in named):
            changed: dict[str, Any] = {key: int(value) if key == "resize" else value}
            build(size, embedding=8, **given, **changed)


def test_patches_that_lose_pixels_are_refused() -> None:
    for size, model, patch, works in (
        (112, VIT, 32, [128, 96, 224]),
        (128, "vit_small_patch14_dinov2", 14, [126, 140, 518]),
    ):
        given: dict[str, Any] = {"depth": 1, "patch_size": patch}
        told = f"of {size} pixels: patches of {patch} .* another patch_size"
        with torch.device("meta"), pytest.raises(ValueError, match=told) as caught:
            build(size, model=model, options=given, embedding=8)
        assert [int(side) for side in re.findall(r"resize=(\d+)", str(caught.value))] == works


@pytest.mark.parametrize(
    "given",
    [
        *({"model": VIT, "options": {"depth": 1, "patch_size": patch}} for patch in (8, 14, 16)),
        {"model": "vit_small_r26_s32_224", "options": {"depth": 1}},  # a convolutional stem
        {"model": "mvitv2_tiny"},  # patches that overlap
        {"model": VIT, "options": {"patch_size": 32, **PADDED}},
    ],
)
def test_patches_that_lose_nothing_are_taken(given: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert build(112, **given, embedding=8).embedding == 8


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"needs the package timm; .* pip install -e '\.\[timm\]'"):
        build(SIZE)


def test_weights_that_can_not_be_downloaded_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    options = {"model": VIT, "options": FAMILIES[VIT], "resize": None, "pool": "flatten"}
    with pytest.raises(ValueError, match=r"^backbone.weights: .*no connection to the hub.*path$"):
        load_pretrained(small(VIT), "timm", options, SIZE)


def test_images_are_enlarged_inside() -> None:
    net = small(VIT, resize=64).eval()
    assert net.net.state_dict()["pos_embed"].shape[1] == 65
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    enlarged = nn.functional.interpolate(images, (64, 64), mode="bilinear")
    other = build(64, model=VIT, options=FAMILIES[VIT], embedding=16).eval()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(images), other(enlarged), rtol=1e-4, atol=1e-4)


def test_a_run_from_a_file_is_resumed_loaded_and_carried_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file, state = _weights(tmp_path)
    (tmp_path / "a.yaml").write_text(CONFIG)
    backbone = {"name": "timm", "model": VIT, "options": FAMILIES[VIT], "embedding": 16}
    backbone |= {"weights": str(file), "mean": [0.4, 0.5, 0.6]}

    def run(folder: str, *overrides: str, resume: bool = False) -> Path:
        given = [f"backbone={backbone}", f"run.output={tmp_path / folder}", *overrides]
        return experiment.run(load_config(tmp_path / "a.yaml", given), "a.yaml", resume=resume)

    whole = run("whole")
    assert any(line.startswith(f"backbone.weights: {file}: ") for line in caplog.messages)
    part = run("part", "run.max_steps=2")
    file.unlink()  # neither a resume nor a model needs it
    assert run("part", resume=True) == part
    assert _equal_states(_state(whole, 6), _state(part, 6))

    model = recognition.load(whole, device="cpu")
    assert "weights" not in model.architecture.options
    assert model.network.state_dict()["mean"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    images = torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    again = recognition.load(_newest(whole), device="cpu")
    assert torch.equal(model.embed(images), again.embed(images))
    bare = tmp_path / "bare.pt"
    checkpoint.save_tensors(bare, model.network.state_dict())
    with pytest.raises(ValueError, match=r"bare.pt: .*do not tell which model of timm it is"):
        recognition.load(bare)

    other = ("backbone.weights=null", "backbone.mean=[0.1,0.5,0.6]", f"init.weights={whole}")
    with pytest.raises(
        ConfigError, match=r"has the mean \[0.4.*; leave out backbone\.mean, or set"
    ):
        run("other", *other)
    assert not (tmp_path / "other").exists()
    kept = recognition.load(run("kept", *other, "init.skip=[mean]", "run.max_steps=1"))
    found = kept.network.state_dict()["mean"].flatten().tolist()
    assert found == pytest.approx([0.1, 0.5, 0.6])


def _equal_states(left: list[Any], right: list[Any]) -> bool:
    return all(
        torch.equal(one["backbone"][name], two["backbone"][name])
        for one, two in zip(left[:1], right[:1], strict=True)
        for name in one["backbone"]
    )
