"""Gallery and probe folders, TinyFace and RFW, on images whose color is their identity."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval.benchmarks import identification, rfw, tinyface
from eval.report.write import write_report


def embed(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean((2, 3)) - 128


def paint(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, 3), color, np.uint8))


RED, GREEN, BLUE, PINK, WHITE = (
    (0, 0, 255),
    (0, 255, 0),
    (255, 0, 0),
    (120, 60, 255),
    (255, 255, 255),
)


@pytest.mark.parametrize("pool", [True, False])
def test_gallery_and_probe_folders(tmp_path: Path, pool: bool) -> None:
    for name, color in (("ann", RED), ("bob", GREEN), ("cy", BLUE)):
        paint(tmp_path / "gallery" / name / "1.png", color)
        paint(tmp_path / "gallery" / name / "2.png", color)
    paint(tmp_path / "probe/ann/1.png", PINK)  # nearest to ann
    paint(tmp_path / "probe/bob/1.png", GREEN)
    paint(tmp_path / "probe/cy/1.png", PINK)  # cy looks like ann
    paint(tmp_path / "probe/dan/1.png", WHITE)  # not in the gallery
    benchmark = identification.build(
        name="mine", gallery=f"{tmp_path}/gallery", probe=f"{tmp_path}/probe", pool=pool
    )
    result = benchmark(embed, 8)
    assert result.metrics["rank1"] == pytest.approx(100 * 2 / 3)
    assert result.metrics["rank5"] == 100
    assert result.metrics["tpir@0.1"] == pytest.approx(100 * 2 / 3)
    assert result.settings["mated"] == 3
    assert result.settings["gallery"] == (3 if pool else 6)

    write_report([result], tmp_path)
    with open(tmp_path / "matches.csv", newline="") as file:
        _, *rows = csv.reader(file)
    assert len(rows) == 4 * (3 if pool else 5)
    best = [(row[1].split("/")[-2], row[2], row[4], row[6]) for row in rows if row[3] == "1"]
    assert best == [
        ("ann", "ann", "ann", "yes"),
        ("bob", "bob", "bob", "yes"),
        ("cy", "cy", "ann", "no"),
        ("dan", "dan", best[3][2], "no"),
    ]
    assert [float(row[5]) for row in rows[:3]] == sorted([float(row[5]) for row in rows[:3]])[::-1]


def test_tinyface_layout(tmp_path: Path) -> None:
    paint(tmp_path / "Gallery_Match/1_1.png", RED)
    paint(tmp_path / "Gallery_Match/2_1.png", GREEN)
    paint(tmp_path / "Gallery_Match/2_2.png", WHITE)
    paint(tmp_path / "Gallery_Distractor/a.png", PINK)
    paint(tmp_path / "Gallery_Distractor/deep/b.png", BLUE)
    paint(tmp_path / "Probe/1_7.png", PINK)  # a distractor comes first
    paint(tmp_path / "Probe/2_9.png", WHITE)
    result = tinyface.build(name="tinyface", root=str(tmp_path))(embed, 8)
    assert result.metrics["rank1"] == 50
    assert result.metrics["rank5"] == 100
    assert (result.settings["gallery"], result.settings["probes"]) == (5, 2)
    paint(tmp_path / "Probe/nobody.png", RED)
    with pytest.raises(ValueError, match=r"nobody\.png"):
        tinyface.build(name="tinyface", root=str(tmp_path))(embed, 8)


def test_rfw_prints_the_spread(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for group, noise in zip(rfw.GROUPS, (0, 40, 80, 160), strict=True):
        lines = ["10\t6"]
        for person in range(20):
            base = rng.integers(0, 256, 3)
            for number in (1, 2):
                color = np.clip(base + rng.normal(0, noise, 3), 0, 255)
                paint(
                    tmp_path / "data" / group / f"m.{person}" / f"m.{person}_{number:04d}.png",
                    tuple(color),
                )
        for _ in range(10):
            lines += [f"m.{p}\t1\t2" for p in rng.integers(0, 20, 6)]
            lines += [f"m.{p}\t1\tm.{(p + 3) % 20}\t2" for p in rng.integers(0, 20, 6)]
        (tmp_path / "txts" / group).mkdir(parents=True)
        (tmp_path / "txts" / group / f"{group}_pairs.txt").write_text("\n".join(lines))
    result = rfw.build(name="rfw", root=str(tmp_path))(embed, 8)
    groups = [result.metrics[f"accuracy_{group}"] for group in rfw.GROUPS]
    assert len(set(groups)) > 2
    assert result.metrics["accuracy"] == pytest.approx(np.mean(groups))
    assert result.metrics["accuracy_std"] == pytest.approx(np.std(groups))
    assert result.metrics["spread"] == pytest.approx(max(groups) - min(groups))
    assert len(result.curves) == 4


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no: no such folder"):
        identification.build(gallery=f"{tmp_path}/no", probe=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Probe"):
        tinyface.build(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="African"):
        rfw.build(root=str(tmp_path))
