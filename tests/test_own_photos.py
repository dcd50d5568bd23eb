"""docs/guides/own-photos.md: all of its commands, in order, on drawn faces and on a photograph.

The text of a command is changed only as SMALLER says, so that the test takes seconds.
"""

import importlib
import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import train
from data.detect import load_detector
from data.formats.synthetic import draw
from data.types import Pixels
from recognition.backbones.iresnet import build
from tests.photographs import photograph

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guides/own-photos.md").read_text(encoding="utf-8")
SMALLER = {
    "{name: iresnet, depth: 50}": "{name: iresnet, depth: 18, width: 16, embedding: 16}",
    "count: 2000": "count: 20",
    "--count 2000": "--count 20",
    "init.weights=weights.pth": "init.weights=weights.pth optim.epochs=6 optim.batch_size=24",
    "optim.epochs=40": "optim.epochs=21 optim.batch_size=24 backbone.depth=18 "
    "backbone.width=16 data.size=32 "
    "'data.size_schedule={16: 0.4, 24: 0.2}' run.compile=false run.precision=fp32",
}
PEOPLE, IMAGES, SIDE = 14, 10, 160


def _commands() -> list[str]:
    """The commands of the page, in blocks and inline, as they are written."""
    found = re.findall(r"^```bash\n(.*?)^```|`(python [^`]+)`", PAGE, re.DOTALL | re.MULTILINE)
    lines = "\n".join(block or inline.replace("\n", " ") for block, inline in found)
    lines = lines.replace("\\\n", " ")
    return [line for line in lines.splitlines() if len(line.split()) > 3 and "…" not in line]


def _save(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[:, :, ::-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the guide begins: photos, published weights, and the configs."""
    home = tmp_path_factory.mktemp("home")
    (home / "configs").symlink_to(ROOT / "configs")
    astronaut = photograph("astronaut")
    for number, scale in enumerate((1.0, 0.7, 1.4), 1):
        resized = np.array(cv2.resize(astronaut, None, fx=scale, fy=scale), np.uint8)
        _save(home / f"photos/ANNA/IMG_{number}.jpg", resized)
    for person in range(PEOPLE):
        for image in range(IMAGES):
            drawn = draw(seed=5, identity=person, image=image, size=SIDE)
            _save(home / f"photos/P{person}/IMG_{image}.jpg", drawn)
    detect = load_detector()
    drawings = (draw(seed=5, identity=1000, image=image, size=SIDE) for image in range(99))
    seen = [drawn for drawn in drawings if len(detect(drawn)) == 1]
    for number, drawn in enumerate(seen[:4], 7):
        _save(home / f"photos/BEN/IMG_{number}.jpg", drawn)
    (home / "photos/BEN/film.mov").write_bytes(b"no photo")

    torch.manual_seed(0)
    published: nn.Module = build(112, depth=18, width=16, embedding=16)
    torch.save(published.state_dict(), home / "weights.pth")
    return home


def _run(command: str) -> int:
    """Run one command in this process, and return its exit code."""
    for written, smaller in SMALLER.items():
        command = command.replace(written, smaller)
    words = shlex.split(command, comments=True)
    if words[:2] == ["python", "train.py"]:
        return train.main(words[2:])
    assert words[:2] == ["python", "-m"]
    module = importlib.import_module("eval.__main__" if words[2] == "eval" else words[2])
    code: int = module.main(words[3:])
    return code


def test_the_guide_runs_as_it_is_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    commands = _commands()
    assert len(commands) == 14
    told = {}
    for command in commands:
        code = _run(command)
        told[command] = capsys.readouterr()
        assert code == 0, f"{command}: {told[command].err}"

    (aligned,) = (told[command].out for command in commands if "tools.align" in command)
    assert "1 other" in aligned
    crops = list((home / "faces").glob("*/*.jpg"))
    assert len(crops) > 30
    crop = cv2.imread(str(home / "faces/ANNA/IMG_1.jpg"))
    assert crop is not None
    assert crop.shape == (112, 112, 3)
    sets = home / "faces_split"
    people = [{path.name for path in (sets / part).iterdir()} for part in ("train", "test")]
    assert not people[0] & people[1]
    for run in ("mine", "scratch"):
        (result,) = json.loads((home / "runs" / run / "results.json").read_text())["results"]
        assert result["settings"]["pairs"] == 20
        assert (home / "runs" / run / "training.png").exists()
    (matched,) = (told[command].out for command in commands if "tools.match" in command)
    assert re.match(r"cosine -?\d\.\d{4}\n", matched)
    assert (home / "found/matches.html").exists()
    names = (home / "embeddings.txt").read_text().splitlines()
    assert len(np.load(home / "embeddings.npy")) == len(names) > 0
    exported = {path.name for path in (home / "models/mine").iterdir()}
    assert {"model.safetensors", "model.json", "README.md"} <= exported
