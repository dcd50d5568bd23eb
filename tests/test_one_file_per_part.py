"""A new head, backbone, format and schedule: one file each, dropped into a copy of the checkout.

Classifiers and benchmarks have such a test beside their other tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HEAD = '''
"""Toy head: the cosine is multiplied."""

from data.options import Positive, ShareBelowOne
from recognition.heads._margin import MarginHead, at_least_float32


class Toy(MarginHead):
    def __init__(self, factor, scale):
        super().__init__()
        self.factor, self.scale = factor, scale

    def target(self, cos_t, norms):
        return at_least_float32(cos_t) * self.factor


def build(*, toy_factor: ShareBelowOne = 0.9, scale: Positive = 16.0) -> Toy:
    """A toy.

    toy_factor: what the cosine is
        multiplied by.
    scale: factor from cosines to logits.
    """
    return Toy(toy_factor, scale)
'''
BACKBONE = '''
"""Toy backbone: one linear layer."""

from typing import Literal

from torch import nn


def build(size: int, *, width: Literal[4, 8] = 4) -> nn.Module:
    """A toy.

    width: numbers per embedding.
    """
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, width))
    backbone.embedding = width
    return backbone
'''
FORMAT = '''
"""Toy format: a file with one line per image, which holds its label."""

import cv2
import numpy as np


class ToySet:
    def __init__(self, path):
        self.path = path
        self.labels = np.loadtxt(path, dtype=np.int64)
        self.num_classes = int(self.labels.max()) + 1

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        shade = np.full((32, 32, 3), 40 * self.labels[index], np.uint8)
        return cv2.imencode(".png", shade)[1].tobytes()

    def describe(self, index):
        return f"{self.path}, line {index + 1}"


def detect(path):
    return path.endswith(".toy")


def open_set(path):
    return ToySet(path)
'''
SCHEDULE = '''
"""Toy schedule: the rate is halved by every loss that it is given."""

from torch.optim.lr_scheduler import LRScheduler

from data.options import CountOrZero


class Toy(LRScheduler):
    reads_loss = True

    def __init__(self, optimizer, decays):
        self.most, self.decays = decays, 0
        super().__init__(optimizer)

    def step(self, loss=None):
        self.last_epoch += 1
        self.decays = min(self.decays + (loss is not None), self.most)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] / 2**self.decays
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def build(optimizer, *, decays: CountOrZero = 3) -> Toy:
    """A toy.

    decays: how often the rate is halved.
    """
    return Toy(optimizer, decays)
'''
PARTS = {
    "recognition/heads/toy_head.py": HEAD,
    "recognition/backbones/toy_backbone.py": BACKBONE,
    "data/formats/toy_format.py": FORMAT,
    "recognition/schedulers/toy_schedule.py": SCHEDULE,
}
CONFIG = """
data: {train: faces.toy, size: 32, threads: 1}
backbone: {name: toy_backbone, width: 8}
head: {name: toy_head, toy_factor: 0.8}
optim: {lr: 0.5, batch_size: 4, epochs: 1}
scheduler: {name: toy_schedule}
run: {output: run, log_steps: 1, device: cpu}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product with the four files, a config and a set of 24 images; nothing else is changed."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("data", "eval", "fastface", "recognition", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    shutil.copy(ROOT / "train.py", folder)
    for path, source in PARTS.items():
        (folder / path).write_text(source)
    (folder / "toy.yaml").write_text(CONFIG)
    (folder / "faces.toy").write_text("\n".join(str(image % 6) for image in range(24)))
    return folder


def _train(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def test_four_files_train_together(checkout: Path) -> None:
    done = _train(checkout, "--config", "toy.yaml")
    assert done.returncode == 0, done.stderr
    assert "format toy_format (detected), 24 images, 6 identities" in done.stdout
    tree = yaml.safe_load((checkout / "run" / "config.yaml").read_text())
    assert tree["head"] == {"name": "toy_head", "toy_factor": 0.8, "scale": 16.0}
    assert tree["scheduler"] == {"name": "toy_schedule", "decays": 3}
    written = (checkout / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 6
    assert [line["learning_rate"] for line in steps] == [0.25, 0.125] + [0.0625] * 4
    assert [line["schedule/decays"] for line in steps] == [1, 2, 3, 3, 3, 3]
    assert (checkout / "run" / "model.pt").exists()


def test_their_options_are_checked_and_explained(checkout: Path) -> None:
    told = _train(checkout, "--explain", "head.toy_factor")
    assert told.stdout.splitlines() == [
        "head.toy_factor (toy_head): a number at least 0 and less than 1; default 0.9",
        "    what the cosine is multiplied by.",
    ]
    refused = _train(checkout, "--config", "toy.yaml", "backbone.width=6")
    assert refused.stderr == "error: toy.yaml: backbone.width: found 6, expected 4 or 8\n"
