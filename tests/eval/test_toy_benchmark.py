"""A new benchmark is one file; reports, JSON, command line and training show its figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PRODUCT = ("fastface", "recognition", "data", "eval", "tools")
TOY = '''"""The average length of the embeddings of a folder, a toy."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data.images import FileImages
from data.options import PathText, Positive
from eval.benchmarks import Benchmark, existing_folder
from eval.embed import Embed, embed_faces
from eval.report.result import Protocol, Result

PROTOCOL = Protocol("toys", "average over a folder", {"length": "length of an embedding"})


def build(
    *,
    name: str = "toy",
    root: PathText,
    average: Literal["mean", "median"] = "mean",
    factor: Positive = 1.0,
    mirror: bool = True,
) -> Benchmark:
    """A toy.

    name: in the results.
    root: folder of images.
    average: `mean` or `median`.
    factor: multiplies the length.
    mirror: add the embedding of the mirror image.
    """
    return partial(run, name, existing_folder(root), average, factor, mirror)


def run(
    name: str, root: Path, average: str, factor: float, mirror: bool, embed: Embed, size: int
) -> Result:
    images = FileImages(sorted(root.glob("*.png")))
    lengths = np.linalg.norm(embed_faces(embed, images, size, mirror=mirror), axis=1)
    length = np.median(lengths) if average == "median" else np.mean(lengths)
    figures = {"length": factor * float(length), "images": float(len(images))}
    return Result(name, PROTOCOL, figures, settings={"average": average})
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product's folders with one more file, and a folder of three images."""
    checkout = tmp_path_factory.mktemp("checkout")
    for folder in PRODUCT:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, checkout / folder, ignore=ignored)
    shutil.copy(ROOT / "train.py", checkout)
    (checkout / "eval/benchmarks/toy.py").write_text(TOY)
    (checkout / "sets/toys").mkdir(parents=True)
    for number in range(3):
        pixels = np.full((16, 16, 3), 40 * number, np.uint8)
        cv2.imwrite(str(checkout / f"sets/toys/{number}.png"), pixels)
    return checkout


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=checkout, capture_output=True, text=True, check=False
    )


def assert_reported(folder: Path, name: str, length: str) -> None:
    """The declared figure under its heading, and the other one under its own name."""
    text = (folder / "results.md").read_text()
    assert "| benchmark | length of an embedding | images |" in text
    assert f"| {name} | {length} | 3.000 |" in text
    assert f"- {name}: average over a folder, average m" in text
    html = (folder / "report.html").read_text()
    assert "<th>length of an embedding</th><th>images</th>" in html
    assert f"<td>{name}</td><td>{length}</td><td>3.000</td>" in html
    (result,) = json.loads((folder / "results.json").read_text())["results"]
    assert (result["name"], result["protocol"]) == (name, "toys")
    assert f"{result['metrics']['length']:.3f}" == length


def test_command_line(checkout: Path) -> None:
    np.save(checkout / "x.npy", np.array([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
    (checkout / "x.txt").write_text("0.png\n1.png\n2.png\n")
    stored = ["-m", "eval", "toy", "--embeddings", "x.npy", "--names", "x.txt"]
    options = ["--root", "sets/toys", "--average", "median", "--factor", "2.5", "--json"]
    done = run(checkout, *stored, *options, "--out", "out")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["name"], record["length"], record["images"]) == ("toy", 12.5, 3)
    assert "| toy | 12.500 | 3.000 |" in done.stdout
    assert_reported(checkout / "out", "toy", "12.500")


def test_training(checkout: Path) -> None:
    toy = {"name": "mine", "protocol": "toy", "root": "toys", "average": "median"}
    tree = {
        "data": {"train": "synthetic:identities=4,images=4,size=32", "root": "sets", "size": 32},
        "backbone": {"name": "iresnet", "depth": 18, "width": 4, "embedding": 16},
        "head": "arcface",
        "optim": {"lr": 0.01, "batch_size": 8, "epochs": 1},
        "scheduler": "constant",
        "evaluate": {"sets": [toy]},
        "run": {"output": "run", "device": "cpu"},
    }
    (checkout / "toy.yaml").write_text(yaml.safe_dump(tree))
    done = run(checkout, "train.py", "--config", "toy.yaml")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((checkout / "run/results.json").read_text())["results"]
    assert_reported(checkout / "run", "mine", f"{result['metrics']['length']:.3f}")
    assert "| mine |" in done.stdout
