"""LoRA against its definition, and in whole runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import recognition
from data.faces import open_faces
from recognition import checkpoint, experiment
from recognition.backbones import vit
from recognition.config import ConfigError, LoraConfig
from recognition.distributed import Ranks
from recognition.freeze import Frozen, freeze
from recognition.lora import add_lora, merged
from recognition.parse import load_config
from tools.export import main as export

VIT: dict[str, Any] = {"width": 32, "depth": 2, "heads": 8, "patch": 8, "embedding": 16}
TARGETS = ("blocks.*.attn.*.weight", "blocks.*.mlp.fc1.weight")
CONFIG = f"""
data: {{train: "synthetic:identities=4,images=6,first=50", size: 32, threads: 1}}
backbone: {{name: vit, width: 32, depth: 2, heads: 8, patch: 8, embedding: 16}}
init:
  freeze: ["patch_embed.*", "*.norm?.*"]
  lora: {{rank: 2, alpha: 6, targets: {list(TARGETS)}}}
head: {{name: arcface, scale: 16}}
optim: {{lr: 0.05, batch_size: 8, epochs: 2}}
scheduler: {{name: constant}}
run: {{output: unused, log_steps: 1, device: cpu, checkpoint_steps: 1, keep: 9}}
"""


def lora(**changed: Any) -> LoraConfig:
    return LoraConfig(**{"rank": 2, "targets": TARGETS, "alpha": 6.0, **changed})


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return vit.build(32, **VIT, mask=0.0, drop_path=0.0)


def changed(net: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Random A and B in each layer with a change, by the name of the layer."""
    found = {}
    for name, module in net.named_modules():
        if name.endswith("parametrizations.weight.0"):
            nn.init.normal_(module.b, std=0.1)
            found[name.removesuffix(".parametrizations.weight.0")] = (module.a, module.b)
    return found


def test_a_layer_adds_the_change_of_low_rank() -> None:
    plain, net = small(), small()
    add_lora(net, lora(), Frozen())
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.eval()(images), plain.eval()(images))  # B is 0
        found = changed(net)
        assert len(found) == 6
        for name, (a, b) in found.items():
            layer, x = net.get_submodule(name), torch.randn(4, a.shape[1])
            weight: Any = plain.get_submodule(name).weight
            bias: Any = 0 if layer.bias is None else layer.bias
            expected = x @ weight.T + (x @ a.T) @ b.T * 6 / 2 + bias
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        plain.load_state_dict(merged(net.state_dict()))
        assert torch.equal(net(images), plain(images))


def test_it_reaches_layers_whose_weight_is_read_directly() -> None:
    """As the attention of EVA, BEiT and Swin V2 does in timm."""

    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, weight=self.qkv.weight, bias=self.qkv.bias)

    net = Direct()
    add_lora(net, lora(targets=("qkv.weight",)), Frozen())
    ((a, b),) = changed(net).values()
    net(torch.randn(2, 4)).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert net.qkv.parametrizations.weight.original.grad is None  # type: ignore[union-attr]


def test_what_is_trained_is_counted() -> None:
    net = small()
    frozen = freeze(net, ["*"], more=True)
    kept, line = add_lora(net, lora(), frozen)
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in net.named_parameters()} - kept.parameters
    added = 2 * 2 * ((32 + 96) + (32 + 32) + (32 + 128))
    total = sum(weight.numel() for weight in net.parameters())
    assert line == (
        f"init.lora: 6 linear layers get changes of rank 2 ({added:,} numbers); {added:,} of "
        f"{total:,} numbers are trained"
    )


def test_it_compiles_in_one_graph() -> None:
    net = small()
    add_lora(net, lora(), Frozen())
    changed(net)
    images = torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    outputs = torch.compile(net, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(outputs, net(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"targets": ()}, "init.lora.targets: found none; .* such as blocks.0.attn.qkv.weight"),
        ({"targets": ("norm.weight",)}, "init.lora.targets: 'norm.weight' matches no parameter"),
        ({"rank": 33}, "init.lora.rank: found 33, expected at most 32, the smaller side of blocks"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        add_lora(small(), lora(**given), Frozen())


def test_targets_without_a_rank_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"init.lora.targets: found \['a'\] with init.lora.rank 0"
    ):
        _config(tmp_path, "init.lora={targets: [a]}")


def test_a_state_that_does_not_fit_itself_is_refused() -> None:
    net = small()
    add_lora(net, lora(), Frozen())
    state = net.state_dict()
    name = "blocks.0.attn.qkv.parametrizations.weight.0"
    huge = {**state, f"{name}.b": torch.zeros(1, 1).expand(1 << 20, 2)}
    for damaged in (huge, {key: value for key, value in state.items() if key != f"{name}.a"}):
        with pytest.raises(ValueError, match=r"the LoRA of blocks.0.attn.qkv is incomplete, or"):
            merged(damaged)


def _config(folder: Path, *overrides: str) -> Any:
    (folder / "lora.yaml").write_text(CONFIG)
    return load_config(folder / "lora.yaml", [f"run.output={folder / 'run'}", *overrides])


def test_a_run_trains_only_the_changes_and_what_is_not_frozen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = experiment.run(_config(tmp_path), "lora.yaml")
    assert any(line.startswith("init.lora: 6 linear layers") for line in caplog.messages)
    first, last = (_model(run, step) for step in (1, 6))
    same = {name for name in first if torch.equal(first[name], last[name])}
    kept = {"blocks", "patch_embed"}
    assert {name.split(".")[0] for name in same} - {"feature"} == kept
    for name in first.keys() - same:
        assert not name.endswith("original")
        assert not name.startswith("patch_embed")
    assert "blocks.1.mlp.fc2.weight" not in same

    part = tmp_path / "part"
    trial = _config(tmp_path, f"run.output={part}", "run.max_steps=2")
    experiment.run(trial, "lora.yaml")
    experiment.run(_config(tmp_path, f"run.output={part}"), "lora.yaml", resume=True)
    again = _model(part, 6)
    assert all(torch.equal(again[name], last[name]) for name in last)


def test_every_form_of_a_run_is_the_merged_model(tmp_path: Path) -> None:
    run = experiment.run(_config(tmp_path), "lora.yaml")
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    model = recognition.load(run, device="cpu")
    state = model.network.state_dict()
    assert state.keys() == small().state_dict().keys()
    bare = tmp_path / "bare.pt"
    bare.write_bytes((run / "model.pt").read_bytes())
    assert export([str(run), "--to", "safetensors", "--out", str(tmp_path / "folder")]) == 0
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    for source in (newest, bare, tmp_path / "folder"):
        other = recognition.load(source, device="cpu")
        assert torch.equal(other.embed(images), model.embed(images)), source

    trained = _config(tmp_path)
    parts = experiment.build_parts(
        trained,
        open_faces(trained.data.train, "auto"),
        torch.device("cpu"),
        Ranks(),
    )
    parts.backbone.load_state_dict(checkpoint.load_tensors(run / "model.pt"))
    pixels = images.float() / 127.5 - 1
    with torch.no_grad():
        expected = parts.backbone.eval()(pixels)
    torch.testing.assert_close(model.embed(images), expected, rtol=1e-5, atol=1e-5)


def _model(run: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(run / f"checkpoints/step_{step:08d}/model.pt")
