"""tools.match on photographs and crops, with an untrained model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import recognition
from data.align import align
from data.detect import load_detector
from tests.photographs import photograph
from tests.tools.faces_and_models import crop, portrait, write_evaluation, write_image, write_run
from tools.match import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def test_photos_are_aligned_and_crops_are_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cosine is that of the crops, made one by one and embedded with their mirror images."""
    photo = write_image(tmp_path / "a.png", portrait())
    other = write_image(tmp_path / "b.png", crop(1))
    assert main([str(photo), str(other), "--model", str(run), "--json"]) == 0
    output = capsys.readouterr().out
    record = json.loads(output.splitlines()[-1])
    model = recognition.load(run)
    aligned = align(portrait(), load_detector()(portrait())[0].landmarks, 64)
    pictures = [aligned, crop(1), aligned[:, ::-1], crop(1)[:, ::-1]]
    vectors = model.embed([np.ascontiguousarray(one) for one in pictures]).double()
    one, two = (vectors[:2] + vectors[2:]) / (vectors[:2] + vectors[2:]).norm(dim=1, keepdim=True)
    assert record["cosine"] == pytest.approx(float(one @ two), abs=2e-6)
    assert record["word"] is None
    assert "no threshold: " in output
    assert [face["box"] is None for face in record["faces"]] == [False, True]


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ((0.1, 0.2, 0.3), "same"),
        ((1.1, 1.2, 1.3), "different"),
        ((0.1, 0.2, 1.3), "near the threshold"),
    ],
)
def test_the_word_comes_from_the_evaluation(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ends: tuple[float, float, float],
    word: str,
) -> None:
    one = write_image(tmp_path / "a.png", crop(1))
    write_evaluation(tmp_path, *ends)
    words = [str(one), str(one), "--model", str(run), "--evaluation", str(tmp_path)]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cosine 1.0000"
    assert lines[1] == word
    assert lines[2].startswith(f"threshold {ends[1]:.4f} at a false accept rate of 0.001")
    wrong = {"same": ['"same"'], "different": ['"different"']}.get(word, ['"same"', '"different"'])
    assert [line.split(" is wrong")[0] for line in lines[3:]] == wrong


def test_the_largest_of_several_faces_is_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    face = portrait()
    several = np.zeros((300, 600, 3), np.uint8)
    several[:, :340] = face
    several[:150, 400:570] = face[::2, ::2]
    write_image(tmp_path / "a.png", several)
    write_image(tmp_path / "b.png", face)
    assert main([f"{tmp_path}/a.png", f"{tmp_path}/b.png", "--model", str(run), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/a.png: shows 2 faces; the largest is compared"
    assert json.loads(lines[-1])["cosine"] > 0.99


def test_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    face = str(write_image(tmp_path / "a.png", crop(1)))
    cup = str(write_image(tmp_path / "cup.png", photograph("coffee")))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no")
    for words, said in (
        ([face, cup], "cup.png: no face was found"),
        ([face, f"{tmp_path}/none.jpg"], "none.jpg: no such file"),
        ([face, f"{tmp_path}/broken.jpg"], "broken.jpg: "),
    ):
        assert main([*words, "--model", str(run)]) == 2
        complaint = capsys.readouterr().err
        assert said in complaint
        assert complaint.count("\n") == 1
    assert main([face, cup, "--model", str(run), "--align", "never"]) == 0
    assert main([face, face]) == 2
    assert "give --model" in capsys.readouterr().err
