"""IJB's folder end to end, against the published procedure in plain loops."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from data.align import TEMPLATE, align
from eval.benchmarks.templates import FARS, Lists, build, score
from eval.report.result import Result


def embed(images: torch.Tensor) -> torch.Tensor:
    size = images.shape[-1] // 4
    return torch.nn.functional.avg_pool2d(images.float(), size).flatten(1) - 100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 people, 24 templates of 1-4 images over 1-3 media, all pairs, two galleries and probes."""
    rng = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("IJBC")
    (root / "meta").mkdir()
    (root / "loose_crop").mkdir()
    media, scores = [], []
    faces = rng.integers(0, 256, (8, 4, 4, 3))
    image = 0
    for template in range(24):
        for _ in range(rng.integers(1, 5)):
            image += 1
            pixels = np.clip(faces[template % 8] + rng.normal(0, 90, (4, 4, 3)), 0, 255).astype(
                np.uint8
            )
            photo = cv2.resize(pixels, (140, 130), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(f"{root}/loose_crop/{image}.jpg", photo)
            points = (TEMPLATE * rng.uniform(0.9, 1.1) + rng.normal(0, 2, (5, 2)) + 5).ravel()
            media.append(f"{image}.jpg {100 + template} {rng.integers(0, 3)}")
            scores.append(
                f"{image}.jpg {' '.join(f'{x:.3f}' for x in points)} {rng.uniform(0.5, 1):.4f}"
            )
    pairs = [f"{100 + a} {100 + b} {int(a % 8 == b % 8)}" for a in range(24) for b in range(a)]
    for name, lines in (
        ("face_tid_mid.txt", media),
        ("name_5pts_score.txt", scores),
        ("template_pair_label.txt", pairs),
        (
            "1N_gallery_G1.csv",
            ["TEMPLATE_ID,SUBJECT_ID,x", *(f"{100 + t},{t},9" for t in range(4))],
        ),
        (
            "1N_gallery_G2.csv",
            ["TEMPLATE_ID,SUBJECT_ID,x", *(f"{100 + t},{t},9" for t in range(4, 8))],
        ),
        (
            "1N_probe_mixed.csv",
            ["TEMPLATE_ID,SUBJECT_ID,x", *(f"{100 + t},{t % 8},9" for t in range(8, 24))],
        ),
    ):
        (root / "meta" / f"ijbc_{name}").write_text("\n".join(lines) + "\n")
    return root


def literal(
    root: Path, mirror: bool, keep_norm: bool, detector_score: bool
) -> tuple[dict[str, float], np.ndarray]:
    """(TAR by the nearest ROC point, templates (24,D)), image by image and template by template."""
    vectors, templates, media = [], [], []
    meta = root / "meta"
    listed = (meta / "ijbc_name_5pts_score.txt").read_text().splitlines()
    ids = (meta / "ijbc_face_tid_mid.txt").read_text().splitlines()
    for line, pair in zip(listed, ids, strict=True):
        name, *numbers = line.split()
        photo = cv2.imread(f"{root}/loose_crop/{name}")
        assert photo is not None
        crop = align(
            np.ascontiguousarray(photo[:, :, ::-1]), np.array(numbers[:10], float).reshape(5, 2), 32
        )
        pixels = torch.from_numpy(crop.transpose(2, 0, 1).copy())[None]
        vector = (embed(pixels) + (embed(pixels.flip(3)) if mirror else 0))[0].double().numpy()
        vector = vector if keep_norm else vector / np.linalg.norm(vector)
        vectors.append(vector * (float(numbers[10]) if detector_score else 1))
        templates.append(int(pair.split()[1]))
        media.append(int(pair.split()[2]))
    stacked = []
    for template in range(100, 124):
        of = [i for i, t in enumerate(templates) if t == template]
        total = sum(
            np.mean([vectors[i] for i in of if media[i] == m], 0) for m in {media[i] for i in of}
        )
        stacked.append(total / np.linalg.norm(total))
    table = np.loadtxt(meta / "ijbc_template_pair_label.txt", int)
    cosines = [stacked[a - 100] @ stacked[b - 100] for a, b, _ in table]
    far, tar, _ = roc_curve(table[:, 2], cosines)
    far, tar = np.flipud(far), np.flipud(tar)
    nearest = {
        f"nearest_tar@{f:g}": 100 * tar[min(zip(abs(far - f), range(len(far)), strict=True))[1]]
        for f in FARS
    }
    return nearest, np.array(stacked)


@pytest.mark.parametrize(
    "options", [(True, True, True), (False, True, True), (True, False, True), (True, True, False)]
)
def test_one_to_one_as_published(root: Path, options: tuple[bool, bool, bool]) -> None:
    mirror, keep_norm, detector_score = options
    benchmark = build(
        name="ijbc",
        root=str(root),
        mirror=mirror,
        keep_norm=keep_norm,
        detector_score=detector_score,
    )
    result = benchmark(embed, 32)
    expected, _ = literal(root, *options)
    assert {key: result.metrics[key] for key in expected} == pytest.approx(expected)
    assert 5 < result.metrics["tar@0.01"] < 100
    assert [result.settings[key] for key in ("mirror", "norm kept", "detector score")] == list(
        options
    )


def test_search_in_both_galleries(root: Path) -> None:
    result: Result = build(name="ijbc", root=str(root), one_to_n=True)(embed, 32)
    _, vectors = literal(root, True, True, True)
    rank1, rank1_all = [], []
    for gallery in (range(4), range(4, 8)):
        mated = [q for q in range(8, 24) if q % 8 in gallery]
        rank1.append(
            np.mean([max(gallery, key=lambda g: vectors[q] @ vectors[g]) == q % 8 for q in mated])
        )
    for q in range(8, 24):
        rank1_all.append(max(range(8), key=lambda g: vectors[q] @ vectors[g]) == q % 8)
    assert result.metrics["rank1"] == pytest.approx(100 * np.mean(rank1))
    assert result.metrics["concatenated_rank1"] == pytest.approx(100 * np.mean(rank1_all))
    assert 0 <= result.metrics["tpir@0.01"] <= result.metrics["tpir@0.1"] <= result.metrics["rank1"]


def test_missing_and_broken_lists(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ijbc_face_tid_mid.txt"):
        build(root=str(tmp_path))
    (tmp_path / "meta").mkdir()
    for name in ("face_tid_mid.txt", "name_5pts_score.txt", "template_pair_label.txt"):
        (tmp_path / "meta" / f"ijbc_{name}").write_text(
            (root / "meta" / f"ijbc_{name}").read_text()
        )
    with pytest.raises(FileNotFoundError, match="ijbc_1N_probe_mixed.csv"):
        build(root=str(tmp_path), one_to_n=True)
    build(root=str(tmp_path))
    lists = Lists(tmp_path, "ijbc")
    (tmp_path / "meta/ijbc_template_pair_label.txt").write_text("100 101 1\n100 oops 0\n")
    with pytest.raises(ValueError, match="template_pair_label"):
        lists.pairs()
    (tmp_path / "meta/ijbc_template_pair_label.txt").write_text("100 101 1\n100 102\n")
    with pytest.raises(ValueError, match="three numbers"):
        lists.pairs()
    with pytest.raises(ValueError, match="7 embeddings"):
        score("ijbc", lists, np.ones((7, 4)))
