"""The pair benchmark end to end on drawn images, from each of its sources."""

import re
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data.images import open_images
from data.pairs.drawn import from_faces
from data.pairs.lists import from_list, read_pair_list
from data.pairs.verification_bin import write_bin
from eval.benchmarks import Benchmark, open_benchmark
from eval.benchmarks.pairs import build

SHARED = Path(__file__).parents[2] / "../shared/data/faces"


def embed(images: torch.Tensor) -> torch.Tensor:
    """Mean colors of the four quarters, not symmetric under mirroring."""
    half = images.shape[-1] // 2
    return (images.float() - 110).reshape(-1, 3, 2, half, 2, half).mean((3, 5)).flatten(1)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """24 people of 3 drawn images, and pairs.txt with 12 + 12 pairs in each of ten folds."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for person in range(24):
        base = rng.integers(0, 256, (2, 2, 3))
        for number in range(1, 4):
            noisy = np.clip(base + rng.normal(0, 25, (2, 2, 3)), 0, 255).astype(np.uint8)
            path = root / f"P_{person}" / f"P_{person}_{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), cv2.resize(noisy, (32, 32), interpolation=cv2.INTER_NEAREST))
    lines = ["10\t12"]
    for _ in range(10):
        for _ in range(12):
            shown = rng.integers(1, 4)
            lines.append(f"P_{rng.integers(0, 24)}\t{shown}\t{shown % 3 + 1}")
        for _ in range(12):
            p, q = rng.choice(24, 2, replace=False)
            lines.append(f"P_{p}\t{rng.integers(1, 4)}\tP_{q}\t{rng.integers(1, 4)}")
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def literal_accuracy(folder: Path, mirror: bool) -> tuple[float, float]:
    """The published protocol with plain loops: images embedded one by one."""
    names, same = read_pair_list(folder / "pairs.txt")
    distances = []
    seen: dict[str, np.ndarray] = {}
    for pair in names:
        for name in set(pair) - seen.keys():
            photo = cv2.imread(f"{folder}/images/{name}.png")
            assert photo is not None
            bgr = cv2.resize(photo, (16, 16), interpolation=cv2.INTER_AREA)
            pixels = torch.from_numpy(bgr[:, :, ::-1].transpose(2, 0, 1).copy())[None]
            vector = embed(pixels)[0] + (embed(pixels.flip(3))[0] if mirror else 0)
            seen[name] = vector.double().numpy() / np.linalg.norm(vector.double().numpy())
        distances.append(np.sum((seen[pair[0]] - seen[pair[1]]) ** 2))
    d, folds = np.array(distances), np.arange(len(same)) * 10 // len(same)
    accuracy = []
    for k in range(10):
        train = folds != k
        right = [np.mean((d[train] < t) == same[train]) for t in np.arange(0, 4, 0.01)]
        best = np.arange(0, 4, 0.01)[int(np.argmax(right))]
        accuracy.append(np.mean((d[~train] < best) == same[~train]))
    return 100 * float(np.mean(accuracy)), 100 * float(np.std(accuracy))


def pack(folder: Path, compression: int) -> Path:
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted((folder / "images").rglob("*.png")):
            archive.write(file, f"deep/down/{file.parent.name}/{file.name}")
    return path


def test_every_source_gives_the_literal_figures(people: Path) -> None:
    pairs = from_list(people / "pairs.txt", people / "images")
    order = np.stack([pairs.first, pairs.second], 1).ravel()
    encoded = [pairs.images.read(int(i)) for i in order]
    write_bin(people / "set.bin", encoded, pairs.same)
    (people / "imgs").mkdir()
    for i, content in enumerate(encoded):
        (people / "imgs" / f"{i}.png").write_bytes(content)
    np.save(people / "pair_label.npy", pairs.same)
    names = [pairs.images.describe(int(i)).split("images/")[1] for i in order]
    lines = [
        f"{names[2 * i]} {names[2 * i + 1]} {int(same)}\n" for i, same in enumerate(pairs.same)
    ]
    (people / "plain.txt").write_text("".join(lines))

    mirrored, plain = literal_accuracy(people, mirror=True), literal_accuracy(people, mirror=False)
    assert 75 < mirrored[0] < 100
    assert mirrored != plain
    sources: tuple[dict[str, Any], ...] = (
        {"pairs": f"{people}/pairs.txt", "images": f"{people}/images"},
        {"pairs": f"{people}/pairs.txt", "images": str(pack(people, zipfile.ZIP_STORED))},
        {"pairs": f"{people}/plain.txt", "images": f"{people}/images"},
        {"bin": f"{people}/set.bin"},
        {"folder": str(people)},
    )
    for source in sources:
        result = build(name="drawn", **source)(embed, 16)
        for key, expected in (("accuracy", mirrored), ("accuracy_without_mirror", plain)):
            found = result.metrics[key], result.metrics[f"{key}_std"]
            assert found == pytest.approx(expected, abs=1e-9)
        unmirrored = build(name="drawn", mirror=False, **source)(embed, 16)
        assert unmirrored.metrics["accuracy"] == pytest.approx(plain[0], abs=1e-9)
        assert result.notes == ()


def test_lists_of_two_lines_per_pair(people: Path) -> None:
    """The same pairs in the forms of CALFW, CPLFW and SLLFW are read into the same folds."""
    names, same = read_pair_list(people / "pairs.txt")
    lines = [(f"{a}.png", f"{b}.png") for a, b in names]
    (people / "sllfw.txt").write_text("".join(f"{a}\n{b}\n" for a, b in lines))
    found, found_same = read_pair_list(people / "sllfw.txt")
    assert (found, found_same.tolist()) == (lines, same.tolist())

    flat = [(a.split("/")[1], b.split("/")[1]) for a, b in lines]
    marks = [1 + i // 24 if genuine else 0 for i, genuine in enumerate(same)]
    genuine_first = sorted(range(240), key=lambda i: not same[i])
    for mark in (marks, [min(mark, 1) for mark in marks]):  # CALFW counts the folds, CPLFW says 1
        (people / "calfw.txt").write_text(
            "".join(f"{flat[i][0]} {mark[i]}\n{flat[i][1]} {mark[i]}\n" for i in genuine_first)
        )
        found, found_same = read_pair_list(people / "calfw.txt")
        assert (found, found_same.tolist()) == (flat, same.tolist())
    # Its images are in folders that the list does not name.
    zipped = pack(people, zipfile.ZIP_STORED)
    result = build(name="calfw", pairs=f"{people}/calfw.txt", images=str(zipped))(embed, 16)
    assert result.metrics["accuracy"] == pytest.approx(
        literal_accuracy(people, mirror=True)[0], abs=1e-9
    )
    assert result.notes == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a_0001.jpg 1\na_0002.jpg 0\n", "line 1: .*one K"),
        ("a_0001.jpg 1\na_0002.jpg 1\nb_0001.jpg 0\n", "line 3: a pair without its second line"),
        ("a/a_0001.jpg\na/a_0002.jpg\nb/b_0001.jpg 1\nc/c_0001.jpg 1\n", "line 3: .*NAME/IMAGE"),
    ],
)
def test_broken_lists_of_two_lines_per_pair(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_pair_list(tmp_path / "list.txt")


def test_a_name_that_fits_two_images_of_a_zip_is_an_error(people: Path) -> None:
    with zipfile.ZipFile(people / "two.zip", "w") as archive:
        for folder in ("aligned", "loose"):
            archive.write(people / "images/P_0/P_0_0001.png", f"{folder}/P_0_0001.png")
    with pytest.raises(ValueError, match=r"aligned/P_0_0001.png or loose/P_0_0001.png"):
        open_images(people / "two.zip", ["P_0_0001"])
    assert len(open_images(people / "two.zip", ["aligned/P_0_0001"])) == 1


def test_worst_pairs_are_wrong_decisions_in_order(people: Path) -> None:
    result = build(name="drawn", pairs=f"{people}/pairs.txt", images=f"{people}/images")(embed, 16)
    accepts = [pair.score for pair in result.worst if not pair.same]
    rejects = [pair.score for pair in result.worst if pair.same]
    assert accepts == sorted(accepts, reverse=True)
    assert rejects == sorted(rejects)
    assert accepts
    limit = 1 - result.metrics["threshold"] / 2
    assert min(accepts) > limit >= max(rejects, default=-1)
    for pair in result.worst:
        assert (Path(pair.names[0]).parent == Path(pair.names[1]).parent) == pair.same
        assert pair.images[0] == Path(pair.names[0]).read_bytes()


def test_drawn_pairs_are_balanced_disjoint_and_repeatable(people: Path) -> None:
    pairs = from_faces(people / "images", count=60, seed=1)
    faces = pairs.images
    labels = faces.labels  # type: ignore[attr-defined]
    again = from_faces(people / "images", count=60, seed=1)
    assert (pairs.first.tolist(), pairs.second.tolist()) == (
        again.first.tolist(),
        again.second.tolist(),
    )
    assert pairs.first.tolist() != from_faces(people / "images", count=60, seed=2).first.tolist()
    assert ((labels[pairs.first] == labels[pairs.second]) == pairs.same).all()
    assert (pairs.first != pairs.second).all()
    assert len({(a, b) for a, b in zip(pairs.first, pairs.second, strict=True)}) == 60
    folds = [slice(6 * k, 6 * k + 6) for k in range(10)]
    assert all(pairs.same[fold].sum() == 3 for fold in folds)
    seen = [set(labels[pairs.first[fold]]) | set(labels[pairs.second[fold]]) for fold in folds]
    assert all(not (a & b) for i, a in enumerate(seen) for b in seen[:i])
    assert pairs.notes == ()
    with pytest.raises(ValueError, match="multiple of 20"):
        from_faces(people / "images", count=50)


@pytest.mark.parametrize("identities", [3, 12, 25])
def test_the_largest_count_is_named_and_can_be_drawn(identities: int) -> None:
    """The refused count names the largest one; that one gives distinct pairs of the right kind."""
    line = f"synthetic:identities={identities},images=4,size=8"
    with pytest.raises(ValueError, match="give a smaller count") as refused:
        from_faces(line, count=100_000)
    found = re.search(r"at most (\d+) pairs in 10 folds, but count is 100000", str(refused.value))
    assert found is not None
    largest = int(found[1])
    pairs = from_faces(line, count=largest)
    distinct = {(min(a, b), max(a, b)) for a, b in zip(pairs.first, pairs.second, strict=True)}
    assert len(distinct) == largest
    assert ((pairs.first // 4 == pairs.second // 4) == pairs.same).all()
    # 6 genuine pairs per person; folds of 2 people, or all people for folds that share them
    assert largest == {3: 20 * (3 * 6 // 10), 12: 20 * (12 * 6 // 10), 25: 20 * 2 * 6}[identities]
    with pytest.raises(ValueError, match=f"at most {largest} pairs"):
        from_faces(line, count=largest + 20)


def test_a_set_without_a_genuine_pair_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="at most 0 pairs.*add images or people"):
        from_faces("synthetic:identities=30,images=1,size=8", count=20)


def test_unfair_order_is_noted(people: Path) -> None:
    lines = (people / "pairs.txt").read_text().splitlines()
    (people / "sorted.txt").write_text(
        "\n".join(sorted(lines[1:], key=lambda line: line.count("\t")))
    )
    result = build(name="drawn", pairs=f"{people}/sorted.txt", images=f"{people}/images")(embed, 16)
    assert "unfair" in result.notes[0]


def test_pairs_of_one_kind_have_no_roc(people: Path) -> None:
    pairs = from_list(people / "pairs.txt", people / "images")
    genuine = np.flatnonzero(pairs.same)[:10]
    sides = np.stack([pairs.first[genuine], pairs.second[genuine]], 1).ravel()
    write_bin(people / "ten.bin", [pairs.images.read(int(i)) for i in sides], pairs.same[genuine])
    result = build(name="ten", bin=f"{people}/ten.bin")(embed, 16)
    # Only the farthest pair can miss the threshold of the others.
    assert result.metrics["accuracy"] in (
        90,
        100,
    )
    assert "auc" not in result.metrics
    assert not result.curves
    assert "all 10 pairs are genuine" in result.notes[0]


def test_missing_and_wrong_files(people: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nowhere.bin: no such file"):
        build(name="lfw", bin="/nowhere.bin")
    item = {"protocol": "pairs", "name": "lfw", "bin": "/nowhere.bin"}
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.bin: no such file.*optional: true"):
        open_benchmark(item, None)
    skipped = open_benchmark({**item, "optional": True}, None)(embed, 16)
    assert skipped.name == "lfw"
    assert skipped.metrics == {}
    assert "/nowhere.bin" in str(skipped.skipped)
    with pytest.raises(ValueError, match="one source"):
        build(name="lfw", pairs="x.txt")
    with pytest.raises(ValueError, match="one source"):
        build(True, name="lfw", bin="x.bin", images="x.zip")
    with pytest.raises(ValueError, match="compressed"):
        from_list(people / "pairs.txt", pack(people, zipfile.ZIP_DEFLATED))
    (people / "bad.txt").write_text("P_1 1 2\nP_1 one 2\n")
    with pytest.raises(ValueError, match=r"bad.txt, line 2"):
        read_pair_list(people / "bad.txt")
    victim = next((people / "images").rglob("*_0001.png"))
    victim.write_bytes(b"no image")
    with pytest.raises(ValueError, match=victim.name):
        run_all(build(name="drawn", pairs=f"{people}/pairs.txt", images=f"{people}/images"))
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=victim.stem):
        run_all(build(name="drawn", pairs=f"{people}/pairs.txt", images=f"{people}/images"))


def run_all(benchmark: Benchmark) -> None:
    benchmark(embed, 16)


def test_a_diverged_model_is_an_error(people: Path) -> None:
    benchmark = build(name="drawn", pairs=f"{people}/pairs.txt", images=f"{people}/images")
    with pytest.raises(ValueError, match="diverged"):
        benchmark(lambda images: torch.full((len(images), 4), float("nan")), 16)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_published_protocol_on_a_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from eval.__main__ import main

    stem = SHARED / "lfw_embeddings_mobilefacenet"
    sources = [
        "--embeddings",
        f"{stem}.npy",
        "--names",
        f"{stem}.txt",
        "--pairs",
        f"{SHARED}/protocol/pairs.txt",
    ]
    assert main(["pairs", *sources, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (round(figures["accuracy"], 3), round(figures["accuracy_std"], 3)) == (99.283, 0.435)
    assert (round(figures["exact_accuracy"], 3), round(figures["exact_accuracy_std"], 3)) == (
        99.317,
        0.411,
    )
