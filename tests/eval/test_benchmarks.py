"""What every benchmark promises: its exports, its options, paths below data.root, `optional`."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data.options import PathText
from data.pairs.verification_bin import write_bin
from data.parts import find_part, option_texts, part_names
from eval.benchmarks import PACKAGE, open_benchmark
from eval.report.result import Protocol
from recognition.config import ConfigError
from recognition.parse import load_config

NAMES = part_names(PACKAGE)


def embed(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images.float(), 4).flatten(1) - 100


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_declares_itself(name: str) -> None:
    module = find_part(PACKAGE, name)
    assert isinstance(module.PROTOCOL, Protocol)
    assert module.PROTOCOL.columns
    options = {
        key: one
        for key, one in inspect.signature(module.build).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    }
    assert "name" in options
    assert options.keys() <= option_texts(module.build).keys()
    assert not options.keys() & {"protocol", "optional"}  # These keys belong to `evaluate.sets`.
    hints = typing.get_type_hints(module.build, include_extras=True)
    texts = [key for key in options if hints[key] in (str, str | None) and key != "name"]
    assert texts == []  # An option that is text is a path or has choices.


SETS: list[dict[str, Any]] = [
    {"protocol": "pairs", "pairs": "pairs.txt", "images": "people"},
    {"protocol": "pairs", "bin": "African_test.bin"},
    {"protocol": "pairs", "folder": "numbered"},
    {"protocol": "pairs", "faces": "people", "count": 20},
    {"protocol": "templates", "root": "IJBC"},
    {"protocol": "rfw", "root": "."},
    {"protocol": "tinyface", "root": "tiny"},
    {"protocol": "identification", "gallery": "people", "probe": "people"},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small set for each entry of SETS."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    encoded = []
    for person in range(20):
        for number in (1, 2):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            encoded.append(cv2.imencode(".png", pixels)[1].tobytes())
            at = person + 20 * (number - 1)
            for path in (
                f"people/{person}/{person}_{number:04d}.png",
                f"numbered/imgs/{at}.png",
                f"IJBC/loose_crop/{at}.png",
                f"tiny/{'Probe' if number == 1 else 'Gallery_Match'}/{person}_{number}.png",
                f"tiny/Gallery_Distractor/{at}.png",
            ):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(encoded[-1])
    same = np.tile([True, False], 10)
    np.save(root / "numbered/pair_label.npy", same)
    for group in ("African", "Asian", "Caucasian", "Indian"):
        write_bin(root / f"{group}_test.bin", encoded, same)
    lines = [f"{p} 1 2\n{p} 1 {(p + 1) % 20} 2" for p in range(20)]
    (root / "pairs.txt").write_text("\n".join(lines))
    (root / "IJBC/meta").mkdir()
    points = "5 5 11 5 8 8 5 11 11 11"
    for name, lines in {
        "face_tid_mid.txt": [f"{i}.png {i % 20} {i}" for i in range(40)],
        "name_5pts_score.txt": [f"{i}.png {points} 0.9" for i in range(40)],
        "template_pair_label.txt": [f"{i} {j} {int(i == j)}" for i in range(20) for j in range(i)]
        + ["0 0 1"],
    }.items():
        (root / f"IJBC/meta/ijbc_{name}").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("item", SETS, ids=lambda item: " ".join(item))
def test_paths_start_at_data_root(
    root: Path, item: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    item = {**item, "name": "mine"}
    result = open_benchmark(item, str(root))(embed, 16)
    assert result.name == "mine"
    assert result.metrics
    with pytest.raises(FileNotFoundError, match="optional: true"):
        open_benchmark(item, None)


def test_every_benchmark_has_a_set_above() -> None:
    assert {item["protocol"] for item in SETS} == set(NAMES)
    paths = {
        (name, key)
        for name in NAMES
        for key, hint in typing.get_type_hints(
            find_part(PACKAGE, name).build, include_extras=True
        ).items()
        if PathText in (hint, *typing.get_args(hint))
    }
    assert paths == {
        (item["protocol"], key) for item in SETS for key in item if key not in ("protocol", "count")
    }


@pytest.mark.parametrize("item", SETS, ids=lambda item: " ".join(item))
def test_an_optional_set_without_its_files_is_skipped(item: dict[str, Any], tmp_path: Path) -> None:
    item = {**item, "name": "mine", "optional": True}
    result = open_benchmark(item, str(tmp_path / "nowhere"))(embed, 16)
    assert "nowhere" in str(result.skipped)
    assert (result.name, result.metrics) == ("mine", {})
    assert result.protocol is find_part(PACKAGE, item["protocol"]).PROTOCOL


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("{name: a, protocol: templates, root: x, target: ijba}", r"target: found 'ijba'.*ijb[bc]"),
        ("{name: a, bin: x.bin, optional: perhaps}", "optional"),
        ("{name: a, protocol: pairs, bin: x.bin, missing: x}", "missing: unknown key of pairs"),
    ],
)
def test_a_config_with_a_wrong_entry_is_refused(item: str, told: str) -> None:
    quickstart = Path(__file__).parents[2] / "configs/quickstart.yaml"
    with pytest.raises(ConfigError, match=told):
        load_config(quickstart, [f"evaluate.sets=[{item}]"])


def test_an_optional_set_may_not_be_wrong() -> None:
    item = {"protocol": "pairs", "name": "mine", "bin": "a.bin", "folder": "b", "optional": True}
    with pytest.raises(ValueError, match="give exactly one source"):
        open_benchmark(item, None)
