"""A new classifier is one file: it trains, resumes on another number of ranks, and is planned."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from recognition import checkpoint

ROOT = Path(__file__).parents[3]
EMBEDDING, IDENTITIES, IMAGES, SAVED = 16, 6, 10, 4
RUN = f"""
data: {{train: "synthetic:identities={IDENTITIES},images={IMAGES}", size: 32, threads: 1}}
backbone: {{name: iresnet, depth: 18, width: 4, embedding: {EMBEDDING}}}
head: {{name: cosface, margin: 0.3, scale: 16}}
classifier: {{name: toy, chunk: 4}}
optim: {{lr: 0.05, batch_size: 4, epochs: 1}}
scheduler: {{name: constant}}
run: {{log_steps: 5, checkpoint_steps: {SAVED}, device: cpu, keep: 100}}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the product with one more file."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("data", "eval", "fastface", "recognition", "tools"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    toy = Path(__file__).with_name("toy_classifier.py")
    shutil.copy(toy, copy / "recognition" / "classifiers" / "toy.py")
    tree = yaml.safe_load(RUN)
    tree["run"]["output"] = str(copy / "run")
    (copy / "toy.yaml").write_text(yaml.safe_dump(tree))
    return copy


def command(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )


def test_it_trains_and_another_number_of_ranks_continues(checkout: Path) -> None:
    train = ("train.py", "--config", "toy.yaml")
    alone = command(checkout, *train)
    assert alone.returncode == 0, alone.stderr
    folder = checkout / "run" / "checkpoints"
    early, *later = sorted(folder.iterdir())
    _, [whole] = checkpoint.load(early)
    seen = whole["classifier"]["seen"]
    assert seen.sum() == SAVED * 4
    assert seen[:3].sum() != seen[3:].sum()  # so that rows of the wrong rank would be noticed
    for path in later:
        shutil.rmtree(path)

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    two = command(checkout, *torchrun, *train, "--resume")
    assert two.returncode == 0, two.stderr
    newest = checkpoint.newest(folder)
    assert newest is not None
    _, ranks = checkpoint.load(newest)
    for local in ranks:
        (momentum,) = local["optimizer"].values()
        rows = [local["classifier"]["weight"], local["classifier"]["seen"]]
        assert [len(value) for value in (*rows, momentum["momentum_buffer"])] == [3, 3, 3]

    # In one epoch every image is seen once. Each rank takes two of the four images of a step.
    counts = torch.cat([local["classifier"]["seen"] for local in ranks])
    assert counts.tolist() == [IMAGES] * IDENTITIES


def test_it_is_planned(checkout: Path) -> None:
    classes = 100_000_001
    plan = ("-m", "tools.plan", "--config", "toy.yaml", f"--classes={classes}", "--json")
    whole, half = (
        json.loads(command(checkout, *plan, *options).stdout.splitlines()[-1])
        for options in (("--device-memory=4GB",), ("--ranks=2",))
    )
    assert whole["bytes"]["centers"] == classes * EMBEDDING * 4 * 2  # and their momentum
    assert whole["bytes"]["counts"] == 8 * classes
    assert half["bytes"]["counts"] == 8 * (classes + 1) // 2
    fitting = [fit["overrides"] for fit in whole["fitting"]]
    assert ["classifier={name: class_pool, size: 0.01}", "optim.batch_size=6"] in fitting


def test_it_refuses_what_it_does_not_admit(checkout: Path) -> None:
    refused = command(checkout, "train.py", "--config", "toy.yaml", "optim.accumulation=2")
    assert refused.returncode == 2
    assert refused.stderr == "error: toy.yaml: optim.accumulation: found 2, expected 1\n"
