"""A backbone that needs landmarks: trained, evaluated, loaded, and refused where it has none."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import recognition
from data.decode import decode
from data.faces import open_faces
from data.landmarks import (
    TEMPLATE_SHARES,
    landmarks_file,
    mirrored,
    needed_landmarks,
    write_landmarks,
)
from eval.embed import embed_faces
from recognition import experiment
from recognition.config import Config, ConfigError
from recognition.parse import parse_config
from tools.convert import convert
from tools.export import main as export

OPTIONS = {"width": 16, "depth": 1, "heads": 2, "mlp": 2, "embedding": 8, "patch": 8}


def config(folder: Path, landmarks: str = "given", **more: object) -> Config:
    faces = str(folder / "faces")
    return parse_config(
        {
            "data": {"train": faces, "size": 32, "threads": 1, "augment": {"shift": 2}},
            "backbone": {"name": "kprpe", "landmarks": landmarks, **OPTIONS},
            "head": {"name": "arcface", "margin": 0.2, "scale": 16},
            "optim": {"lr": 0.01, "batch_size": 8, "epochs": 1, "ema": 8},
            "scheduler": {"name": "constant"},
            "evaluate": {"sets": [{"name": "mine", "faces": faces, "count": 20}]},
            "run": {"output": str(folder / landmarks), "device": "cpu", "log_steps": 1},
            **more,
        },
        "test",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`faces` with its landmarks, and the run `given`."""
    place = tmp_path_factory.mktemp("landmarks")
    drawn = open_faces("synthetic:identities=4,images=6,size=32")
    convert(drawn, str(place / "faces"), kind="folder", shard=0)
    with pytest.raises(ConfigError, match=r"faces/landmarks\.npy: no landmarks there") as told:
        experiment.run(config(place), "test")
    assert "\n" not in str(told.value)
    assert not (place / "given").exists()
    faces = open_faces(place / "faces")
    noise = np.random.default_rng(0).standard_normal((len(faces), 5, 2))
    file = landmarks_file(faces)
    assert file is not None
    write_landmarks(file, faces, (TEMPLATE_SHARES + 0.05 * noise).astype(np.float32))
    experiment.run(config(place), "test")
    return place


def test_a_run_trains_and_evaluates_with_landmarks(folder: Path) -> None:
    lines = (folder / "given" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) >= 4
    assert "mine/accuracy" in lines[-1]
    assert "average/mine/accuracy" in lines[-1]
    weight = recognition.load(folder / "given", device="cpu").network.state_dict()
    assert weight["keypoint_linear.weight"].abs().max() > 0  # it was zero at the start


def test_evaluation_embeds_with_the_landmarks_of_each_image_and_of_its_mirror(folder: Path) -> None:
    model = recognition.load(folder / "given", device="cpu")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("keypoint_linear", "blocks.0.attn.qkv", "blocks.0.attn.proj"):
            model.network.get_parameter(f"{name}.weight").normal_(generator=draw)
    faces = open_faces(folder / "faces")
    points = torch.from_numpy(needed_landmarks(faces).copy())
    files = [faces.describe(row) for row in range(len(faces))]
    plain = model.embed(files, points)
    together = embed_faces(model, faces, 32, mirror=False)
    torch.testing.assert_close(plain, torch.from_numpy(together))
    some = [5, 3]
    np.testing.assert_allclose(
        embed_faces(model, faces, 32, mirror=False, indices=some), plain[some], rtol=1e-4, atol=1e-5
    )
    pixels = np.stack([decode(Path(file).read_bytes(), 32) for file in files])
    crops = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    turned = model.embed(crops.flip(3), mirrored(points))
    both = torch.from_numpy(embed_faces(model, faces, 32))
    torch.testing.assert_close(both, plain + turned, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, model.embed(files, points + 0.1), atol=1e-3)


def test_a_resumed_run_has_the_same_landmarks(folder: Path) -> None:
    place = folder / "resumed"
    shutil.copytree(folder / "faces", place / "faces")
    run = config(place, run={"output": str(place / "run"), "device": "cpu", "log_steps": 1})
    experiment.run(run, "test")
    experiment.run(run, "test", resume=True)
    faces = open_faces(place / "faces")
    file, points = landmarks_file(faces), needed_landmarks(faces).copy()
    assert file is not None
    points[7, 2, 1] += 0.01
    write_landmarks(file, faces, points)
    with pytest.raises(ConfigError, match="landmarks of its training set were other ones"):
        experiment.run(run, "test", resume=True)


def test_missing_landmarks_are_told_in_one_line(folder: Path) -> None:
    model = recognition.load(folder / "given", device="cpu")
    faces = open_faces("synthetic:identities=2,images=2,size=32")
    with pytest.raises(
        ValueError, match="no landmarks there, which this backbone needs; python -m"
    ):
        embed_faces(model, faces, 32)
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="embed: found no landmarks, which this model needs"):
        model.embed(pixels)
    with pytest.raises(ValueError, match=r"embed: found landmarks of shape \(1, 5, 2\)"):
        model.embed(pixels, torch.zeros(1, 5, 2))
    template = recognition.load(folder / "given", device="cpu", landmarks="template")
    assert embed_faces(template, faces, 32).shape == (4, 8)
    with pytest.raises(ValueError, match="found landmarks, which this model does not take"):
        template.embed(pixels, torch.zeros(2, 5, 2))


def test_an_export_takes_images_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "exported"
    line = [str(folder / "given"), "--to", "safetensors", "--out", str(out)]
    assert export(line) == 2
    assert "needs the landmarks of each image" in capsys.readouterr().err
    assert export([*line, "--landmarks", "template"]) == 0
    model = recognition.load(out, device="cpu")
    assert not model.needs_landmarks


def test_a_gallery_network_gets_no_landmarks(folder: Path) -> None:
    with pytest.raises(ConfigError, match="gallery network of this classifier gets no landmarks"):
        experiment.run(
            config(
                folder,
                classifier={"name": "semi_siamese", "size": 4},
                run={"output": str(folder / "pool"), "device": "cpu"},
            ),
            "test",
        )
