"""`optim.ema`: the average itself, its batch norms, and runs that keep one."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import recognition
from data.decode import decode
from data.faces import open_faces
from eval.benchmarks import open_benchmark
from eval.report.write import as_json
from recognition import checkpoint, ema
from recognition.config import Config, ConfigError
from recognition.distributed import Ranks
from recognition.ema import WeightAverage, measure_statistics
from recognition.experiment import run
from recognition.parse import load_config

SMALL = """
data:
  train: "synthetic:identities=6,images=8"
  size: 32
  size_schedule: {16: 0.4}
  threads: 1
  augment: {shift: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 8, dropout: 0.2}
head: {name: cosface, scale: 16}
optim: {name: muon, lr: 0.05, batch_size: 12, epochs: 3, ema: 0.5}
scheduler: {name: polynomial, power: 1}
evaluate:
  every_epochs: 2
  sets:
    - {name: held, protocol: pairs, faces: "synthetic:identities=9,images=4,first=50", count: 40}
run: {output: OUTPUT, log_steps: 1, device: cpu}
"""
TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def _config(folder: Path, name: str, *overrides: str) -> Config:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return load_config(path, [f"run.output={folder / name}", *overrides])


def test_the_average_is_that_of_the_definition() -> None:
    net = nn.Linear(3, 2)
    net.bias.requires_grad_(False)
    average = WeightAverage(net, half_life=40)
    expected = net.weight.detach().double().clone()
    draw = np.random.default_rng(0)
    for step in range(1, 30):
        taken = step % 7 != 3
        if taken:
            net.weight.data = torch.from_numpy(draw.normal(size=(2, 3))).float()
            keep = 2 ** (-8 / min(40.0, 8 * step / 3))
            expected = keep * expected + (1 - keep) * net.weight.detach().double()
        average.update(8, 8 * step, TRUE if taken else FALSE)
    assert average.state_dict().keys() == {"weight"}
    torch.testing.assert_close(
        average.state_dict()["weight"].double(), expected, rtol=1e-5, atol=1e-6
    )


def test_a_network_has_the_average_only_inside() -> None:
    linear, norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
    net = nn.Sequential(linear, norm)
    average = WeightAverage(net, half_life=1)
    net(torch.randn(6, 3))
    with torch.no_grad():
        linear.weight += 1
    before = copy.deepcopy(net.state_dict())
    with average.in_place():
        torch.testing.assert_close(linear.weight.detach(), before["0.weight"] - 1)
        norm.reset_running_stats()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_statistics_are_those_of_the_networks_own_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path, "run", "data.augment={flip: 0}")
    faces = open_faces(config.data.train)
    monkeypatch.setattr(ema, "MEASURED_IMAGES", len(faces))
    conv, norm, still = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    net = nn.Sequential(conv, norm, nn.Dropout(0.5), still)
    still.eval()  # as a frozen one is
    frozen = copy.deepcopy(still.state_dict())
    nn.init.constant_(norm.get_buffer("running_mean"), 100)
    measure_statistics(config, net, faces, Ranks())

    pixels = np.stack([decode(faces.read(i), 32) for i in range(len(faces))])
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    mean = conv(inputs).double().mean((0, 2, 3))
    torch.testing.assert_close(norm.get_buffer("running_mean").double(), mean, rtol=1e-4, atol=1e-5)
    assert [module.training for module in net] == [True, True, True, False]
    assert norm.momentum == 0.1
    assert all(torch.equal(value, frozen[name]) for name, value in still.state_dict().items())


def test_a_stopped_run_continues_to_the_same_average(tmp_path: Path) -> None:
    run(_config(tmp_path, "whole"), "test")
    run(_config(tmp_path, "stopped", "run.max_steps=5"), "test")
    run(_config(tmp_path, "stopped"), "test", resume=True)
    whole, stopped = (
        checkpoint.load_tensors(tmp_path / name / "average/model.pt")
        for name in ("whole", "stopped")
    )
    raw = checkpoint.load_tensors(tmp_path / "whole/model.pt")
    assert whole.keys() == stopped.keys() == raw.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert not torch.equal(whole["fc.weight"], raw["fc.weight"])

    # The average changes nothing of the run itself.
    run(_config(tmp_path, "plain", "optim.ema=null"), "test")
    plain = checkpoint.load_tensors(tmp_path / "plain/model.pt")
    assert all(torch.equal(plain[name], raw[name]) for name in plain)
    assert not (tmp_path / "plain/average").exists()

    # The saved average is the model that was evaluated.
    (written,) = json.loads((tmp_path / "whole/average/results.json").read_text())["results"]
    model = recognition.load(tmp_path / "whole/average", device="cpu")
    held = _config(tmp_path, "whole").evaluate.sets[0]
    assert written == as_json(open_benchmark(held)(model, model.size))
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    logged = [line["average/held/accuracy"] for line in lines if "average/held/accuracy" in line]
    assert len(logged) == 2
    assert logged[-1] == pytest.approx(written["metrics"]["accuracy"])

    with pytest.raises(ConfigError, match="optim.ema"):
        run(_config(tmp_path, "whole", "optim.ema=1"), "test", resume=True)
