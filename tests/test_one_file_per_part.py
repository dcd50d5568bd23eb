"""The complete examples of CONTRIBUTING.md: one file each, dropped into a copy of the checkout."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, str] = dict(BLOCK.findall(PAGE))
CONFIG = """
data: {train: set/faces.lines, size: 32, threads: 1}
backbone: {name: mine, embedding: 32}
head: {name: mine, margin: 0.3, scale: 16}
classifier: {name: mine, chunk: 4}
optim: {lr: 0.5, batch_size: 4, epochs: 1}
scheduler: {name: mine}
evaluate: {sets: [{name: lengths, protocol: mine, root: set}]}
run: {output: run, log_steps: 1, device: cpu}
"""
TESTS = (
    "tests/recognition/backbones/test_backbones.py",
    "tests/recognition/heads/test_heads.py",
    "tests/recognition/test_schedulers.py",
    "tests/data/test_every_format.py",
)


def test_each_kind_of_part_has_an_example() -> None:
    rooms = ["recognition/backbones", "recognition/heads", "recognition/classifiers"]
    rooms += ["recognition/schedulers", "data/formats", "tests/data/sets", "eval/benchmarks"]
    assert list(EXAMPLES) == [f"{room}/mine.py" for room in rooms]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product with the examples' files, a config and a set of 24 images of 6 people."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("configs", "data", "eval", "fastface", "recognition", "tests", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    shutil.copy(ROOT / "train.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, source in EXAMPLES.items():
        (folder / path).write_text(source)
    (folder / "mine.yaml").write_text(CONFIG)
    (folder / "set").mkdir()
    lines = []
    for image in range(24):
        shade = np.full((32, 32, 3), 40 * (image % 6), np.uint8)
        cv2.imwrite(str(folder / "set" / f"{image}.png"), shade)
        lines.append(f"{image % 6}\t{image}.png\n")
    (folder / "set" / "faces.lines").write_text("".join(lines))
    return folder


def _run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def test_they_train_and_evaluate_together(checkout: Path) -> None:
    done = _run(checkout, "train.py", "--config", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "format mine (detected), 24 images, 6 identities" in done.stdout
    tree = yaml.safe_load((checkout / "run" / "config.yaml").read_text())
    assert tree["head"] == {"name": "mine", "margin": 0.3, "scale": 16.0}
    assert tree["scheduler"] == {"name": "mine", "most": 3}
    written = (checkout / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 6
    assert [line["learning_rate"] for line in steps] == [0.25, 0.125] + [0.0625] * 4
    assert [line["schedule/decays"] for line in steps] == [1, 2, 3, 3, 3, 3]
    assert (checkout / "run" / "model.pt").exists()
    (result,) = json.loads((checkout / "run" / "results.json").read_text())["results"]
    assert result["protocol"] == "lengths"
    assert result["metrics"]["length"] > 0


def test_their_options_are_checked_and_explained(checkout: Path) -> None:
    told = _run(checkout, "train.py", "--explain", "head.margin", "--config", "mine.yaml")
    assert told.stdout.splitlines() == [
        "head.margin (mine): a number at least 0; default 0.4",
        "    in units of the cosine, at a right angle.",
    ]
    refused = _run(checkout, "train.py", "--config", "mine.yaml", "backbone.embedding=6")
    assert refused.stderr == "error: mine.yaml: backbone.embedding: found 6, expected 16 or 32\n"


def test_the_tests_of_all_parts_find_them(checkout: Path) -> None:
    options = ("-vv", "-k", "mine", "-p", "no:cacheprovider")
    done = _run(checkout, "-m", "pytest", *options, *TESTS)
    assert done.returncode == 0, done.stdout
    for name in (
        "test_sizes_and_training[mine]",
        "test_every_head_gives_finite_targets_and_slopes[mine-dtype1]",
        "test_every_schedule_continues_from_what_was_saved[mine]",
        "test_images_come_back_by_person[mine]",
    ):
        assert f"{name} PASSED" in done.stdout
