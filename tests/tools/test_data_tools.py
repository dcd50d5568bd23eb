"""tools.convert, tools.verify and tools.stats as a user runs them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.faces import open_faces
from data.formats._record_bytes import pack_image, pack_record
from data.formats.synthetic import draw
from data.names import archive_name
from data.pairs.verification_bin import read_bin
from data.writers._names import identity_names
from tools import convert, stats, verify


def picture(identity: int, image: int, kind: str = ".jpg", size: int = 24) -> bytes:
    pixels = draw(seed=0, identity=identity, image=image, size=size)
    return cv2.imencode(kind, pixels[:, :, ::-1])[1].tobytes()


def by_identity(path: Path) -> Counter[tuple[str, ...]]:
    """How many identities hold which images, which every conversion keeps."""
    faces = open_faces(path)
    groups: dict[int, list[str]] = {}
    for index, label in enumerate(faces.labels.tolist()):
        groups.setdefault(label, []).append(hashlib.sha256(faces.read(index)).hexdigest())
    return Counter(tuple(sorted(group)) for group in groups.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "faces"
    for identity, name in enumerate(["Zoë", "ann", "bob b"]):
        (root / name).mkdir(parents=True)
        for image in range(3 + identity):
            kind = ".png" if image == 1 else ".jpg"
            (root / name / f"{image}{kind}").write_bytes(picture(identity, image, kind))
    return root


def test_every_format_to_every_other_without_loss(folder: Path, tmp_path: Path) -> None:
    expected = by_identity(folder)
    steps = ["a.rec", "b.zip", "c.tar", "d", "e.tar", "f.zip", "g.rec", "h"]
    source = folder
    for step in steps:
        assert convert.main([str(source), str(tmp_path / step)]) == 0
        source = tmp_path / step
        assert by_identity(source) == expected
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert len(names) == 3
    assert not list(tmp_path.rglob("*.partial"))


def test_names_survive_where_the_format_has_a_place(folder: Path, tmp_path: Path) -> None:
    for target in ("a.rec", "b.zip", "c.tar"):
        assert convert.main([str(folder), str(tmp_path / target)]) == 0
        found = open_faces(tmp_path / target)
        assert sorted(identity_names(found, archive_name)) == ["Zoë", "ann", "bob b"]
    assert convert.main([str(tmp_path / "a.rec"), str(tmp_path / "back")]) == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["Zoë", "ann", "bob b"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_shards_continue_where_they_were(kind: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    arguments = [str(folder), str(target), "--to", kind, "--shard", "5"]
    assert convert.main(arguments) == 0
    made = sorted(target.glob(f"*.{kind}"))
    assert len(made) == 3
    whole = {path.name: path.read_bytes() for path in made}
    stamp = made[0].stat().st_mtime_ns
    made[1].unlink()
    assert convert.main(arguments) == 0
    assert {path.name: path.read_bytes() for path in target.glob(f"*.{kind}")} == whole
    assert made[0].stat().st_mtime_ns == stamp
    assert by_identity(target) == by_identity(folder)


def test_pairs_become_a_bin(folder: Path, tmp_path: Path) -> None:
    listed = [("ann/0.jpg", "ann/2.jpg", 1), ("Zoë/0.jpg", "bob b/1.png", 0)]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{a}\t{b}\t{same}\n" for a, b, same in listed), encoding="utf-8")
    assert convert.main([str(folder), str(tmp_path / "x.bin"), "--pairs", str(pairs)]) == 0
    images, same = read_bin(tmp_path / "x.bin")
    assert same.tolist() == [True, False]
    assert images == [(folder / name).read_bytes() for a, b, _ in listed for name in (a, b)]


def test_what_cannot_be_converted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.rec").write_bytes(b"")
    cases = [
        ([str(folder), str(tmp_path / "there.rec")], "exists already"),
        ([str(folder), str(tmp_path / "x.7z")], "unknown suffix"),
        ([str(folder), str(tmp_path / "x.bin")], "--pairs"),
        ([str(tmp_path / "nothing"), str(tmp_path / "x.rec")], "no such file"),
    ]
    for arguments, message in cases:
        assert convert.main(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
    assert (tmp_path / "there.rec").read_bytes() == b""


def write_rec(path: Path, records: list[bytes], *, missing: tuple[int, ...] = ()) -> None:
    at = 0
    with open(path, "wb") as rec, open(path.with_suffix(".idx"), "w") as idx:
        for key, payload in enumerate(records):
            if key not in missing:
                idx.write(f"{key}\t{at}\n")
            at += rec.write(pack_record(payload))


def found(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = verify.main([str(path)])
    return code, capsys.readouterr().out.splitlines()[:-1]


def test_verify_passes_a_clean_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert.main([str(folder), str(tmp_path / "a.rec")])
    for path in (folder, tmp_path / "a.rec"):
        capsys.readouterr()
        assert found(path, capsys) == (0, [])


def test_verify_names_each_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [picture(identity, image) for identity, image in [(0, 0), (0, 1), (3, 0), (3, 1)]]
    doubled = [good[0], good[1], good[0], good[2], good[2]]
    broken = [b"", b"junk", good[3][:-40]]
    images = [*doubled, *broken, picture(3, 2, size=20), good[3]]
    labels = [0, 0, 0, 3, 0, 3, 3, 3, 3, 3]
    path = tmp_path / "bad.rec"
    pairs = enumerate(zip(images, labels, strict=True))
    records = [pack_image(data, float(label), key) for key, (data, label) in pairs]
    write_rec(path, records, missing=(9,))
    (tmp_path / "property").write_text("4,24,24")
    code, lines = found(path, capsys)
    assert code == 1
    rows = sorted(tuple(line.split(": ", 2)) for line in lines)
    where = str(path)
    assert [(kind, place.removeprefix(where).strip()) for kind, place, _ in rows] == [
        *(("duplicate", f"key {key}") for key in (2, 4)),
        *(("gap", ""), ("index", ""), ("size", "key 8")),
        *(("undecodable", f"key {key}") for key in (5, 6, 7)),
    ]
    assert "one identity" in rows[0][2]
    assert "identities" in rows[1][2]
    assert "20×20 pixels, expected 24×24" in rows[4][2]


def test_verify_finds_truncation_and_bad_magic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.rec"
    records = [pack_image(picture(identity, 0), float(identity), identity) for identity in range(4)]
    write_rec(path, records)
    whole = path.read_bytes()
    verify.main([str(path)])
    path.write_bytes(whole[:-30])
    code, lines = found(path, capsys)
    assert code == 1
    assert "unopenable" in lines[-1]
    at = len(pack_record(records[0]))
    path.write_bytes(whole[:at] + b"\0" + whole[at + 1 :])
    code, lines = found(path, capsys)
    assert code == 1
    assert f"byte {at}" in lines[-1]


def test_verify_refuses_a_missing_set_and_an_unknown_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(tmp_path / "none.rec")]) == 2
    assert "none.rec" in capsys.readouterr().err
    assert verify.main([str(tmp_path), "--format", "recordoi"]) == 2
    assert "did you mean recordio?" in capsys.readouterr().err


def test_verify_says_no_with_code_1_and_counts_in_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ann" / "0.jpg").write_bytes(b"junk")
    assert verify.main([str(folder), "--json"]) == 1
    printed, told = capsys.readouterr()
    assert json.loads(printed.splitlines()[-1]) == {"findings": 1, "undecodable": 1}
    assert told.splitlines()[-1] == f"error: {folder}: 1 fault(s)"


def test_stats(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats.main([str(folder), "--png", str(tmp_path / "h.png"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["images"] == 12
    assert figures["identities"] == 3
    assert (figures["images_per_identity_min"], figures["images_per_identity_max"]) == (3, 5)
    assert figures["mean_height"] == figures["mean_width"] == 24
    sizes = [path.stat().st_size for path in folder.rglob("*.*g")]
    assert figures["mean_bytes"] == pytest.approx(np.mean(sizes))
    assert cv2.imread(str(tmp_path / "h.png")) is not None
    assert dict(stats.histogram(open_faces(folder)))["3–4"] == 2
    shutil.rmtree(folder / "ann")
    assert stats.main([str(tmp_path / "no")]) == 2
