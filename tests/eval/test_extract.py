"""Extraction: every source, resuming, and benchmarks that start from the files."""

import json
import zipfile
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch

from data.pairs.verification_bin import write_bin
from eval import extract as module
from eval.__main__ import main
from eval.benchmarks import pairs
from eval.embed import embed_faces
from eval.extract import extract, open_source
from eval.stored import load_stored


def embed(images: torch.Tensor) -> torch.Tensor:
    half = images.shape[-1] // 2
    return (images.float() - 110).reshape(-1, 3, 2, half, 2, half).mean((3, 5)).flatten(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for person in "abcdefgh":
        for number in (1, 2):
            path = tmp_path / "faces" / person / f"{person}_{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return tmp_path


def test_every_source_gives_the_same_rows(folder: Path) -> None:
    files = sorted((folder / "faces").rglob("*.png"))
    names = [str(path.relative_to(folder / "faces")) for path in files]
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    with zipfile.ZipFile(folder / "faces.zip", "w") as archive:
        for path, name in zip(files, names, strict=True):
            archive.write(path, name)
    write_bin(folder / "set.bin", [path.read_bytes() for path in files], np.ones(8, bool))
    expected = [path.read_bytes() for path in files]
    sources = ("faces", None), ("list.txt", "faces"), ("list.txt", "faces.zip"), ("set.bin", None)
    for source, images in sources:
        found, listed = open_source(f"{folder}/{source}", f"{folder}/{images}" if images else None)
        assert [found.read(i) for i in range(len(found))] == expected
        assert listed == (
            names if source != "set.bin" else [f"set.bin, image {i}" for i in range(16)]
        )
    one, listed = open_source(str(files[3]))
    assert [one.read(0), *listed] == [expected[3], "b_0002.png"]
    faces, listed = open_source("synthetic:identities=3,images=2,first=0,seed=0,size=32")
    assert len(faces) == len(set(listed)) == 6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_stopped_extraction_continues(
    folder: Path, dtype: Literal["float32", "float16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 5)
    images, names = open_source(f"{folder}/faces")
    out = folder / "x.npy"
    calls = 0

    def failing(batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:  # two views per block: in the third block
            raise KeyboardInterrupt
        return embed(batch)

    with pytest.raises(KeyboardInterrupt):
        extract(failing, images, names, out, size=8, model="m", dtype=dtype)
    assert not out.exists()
    with pytest.raises(ValueError, match="another model, size"):
        extract(embed, images, names, out, size=16, model="n", dtype=dtype)
    record = extract(embed, images, names, out, size=8, model="m", dtype=dtype)
    assert record["resumed_at"] == 10
    found = np.load(out)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, embed_faces(embed, images, 8).astype(dtype))
    assert (folder / "x.txt").read_text().splitlines() == names
    assert sorted(p.name for p in folder.iterdir()) == ["faces", "x.npy", "x.txt"]


def test_too_large_for_float16_is_an_error(folder: Path) -> None:
    images, names = open_source(f"{folder}/faces")
    with pytest.raises(ValueError, match="float32"):
        extract(
            lambda x: 1e6 * embed(x),
            images,
            names,
            folder / "x.npy",
            size=8,
            model="m",
            dtype="float16",
        )


def write_pairs(folder: Path) -> list[str]:
    lines = [f"{p} 1 2" for p in "abcdefgh"] + [
        f"{p} 1 {q} 2" for p, q in zip("abcdefgh", "bcdefgha", strict=True)
    ]
    (folder / "pairs.txt").write_text("\n".join(lines[i // 2 + 8 * (i % 2)] for i in range(16)))
    return ["--pairs", f"{folder}/pairs.txt", "--images", f"{folder}/faces"]


def test_benchmarks_start_from_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, names = open_source(f"{folder}/faces")
    extract(embed, images, names, folder / "x.npy", size=8, model="m")
    sources = write_pairs(folder)
    direct = pairs.build(name="pairs", pairs=sources[1], images=sources[3])(embed, 8)
    stored = ["--embeddings", f"{folder}/x.npy", "--names", f"{folder}/x.txt"]
    for given in (sources, sources[:2]):
        assert main(["pairs", *stored, *given, "--json", "--out", f"{folder}/out"]) == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert record["accuracy"] == pytest.approx(direct.metrics["accuracy"], abs=1e-6)
        assert record["eer"] == pytest.approx(direct.metrics["eer"], abs=1e-6)
        assert record["settings"]["mirror"] == "as stored"
    assert (folder / "out/report.html").exists()
    folders = ["--gallery", f"{folder}/faces", "--probe", f"{folder}/faces"]
    assert main(["identification", *stored, *folders, "--no-pool", "--json"]) == 0
    # Each image finds itself.
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rank1"] == 100


def test_wrong_files_are_one_line_on_stderr(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(folder / "x.npy", np.ones((3, 4), np.float32))
    (folder / "x.txt").write_text("a\nb\n")
    np.save(folder / "objects.npy", np.array([{}, 1], dtype=object))
    stored = ["--names", f"{folder}/x.txt", *write_pairs(folder)]
    for arguments, told in (
        (["--embeddings", f"{folder}/x.npy", *stored], "2 names"),
        (["--embeddings", f"{folder}/objects.npy", *stored], "objects.npy: "),
        (["--embeddings", f"{folder}/no.npy", *stored], "no.npy: no such file"),
        (["--embeddings", f"{folder}/x.npy", *stored[2:]], "--names"),
        (stored[2:], "--model"),
        (["--bin", f"{folder}/no.bin"], "no.bin"),
        (
            ["--model", f"{folder}/run", *stored[2:], "--published", "x_fastface"],
            "no published row",
        ),
    ):
        assert main(["pairs", *arguments]) == 2
        captured = capsys.readouterr()
        assert told in captured.err
        assert captured.err.count("\n") == 1
        assert not captured.out


def test_names_are_found_by_the_end_of_the_path(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "x.txt").write_text("a/1.jpg\tlabel\nb/1.png\n1\n")
    stored = load_stored(tmp_path / "x.npy", tmp_path / "x.txt")
    assert [stored.row(path) for path in ("/data/set/b/1.jpg", "a/1.png", "/data/c/1.jpg")] == [
        1,
        0,
        2,
    ]
    with pytest.raises(ValueError, match="/data/c/2"):
        stored.row("/data/c/2.jpg")
