"""The fine-tuning experiment: its configs are valid, and its table is right on made-up runs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from recognition.parse import load_config
from scripts.experiments.fine_tuning import CONFIG, ROWS, table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_valid_config(row: str) -> None:
    config = load_config(ROOT / CONFIG, ROWS[row])
    assert (config.init.weights is None) == row.startswith("scratch")


def _record(row: str, seed: int, wrong: int) -> dict[str, object]:
    right = np.ones(2000, bool)
    right[:wrong] = False
    figures = {
        "accuracy": 100 * right.mean(),
        "tar@0.001": 50.0,
        "auc": 99.0,
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
    }
    return {"row": row, "seed": seed, "sets": {"same_people": figures, "other_people": figures}}


def test_the_table_has_means_and_paired_differences(tmp_path: Path) -> None:
    wrong = {"untouched": (60, 80), "fine-tuned": (20, 20)}
    for row, counts in wrong.items():
        for seed, count in enumerate(counts):
            (tmp_path / f"{row}{seed}.json").write_text(json.dumps(_record(row, seed, count)))
    lines = table(tmp_path)
    assert [(line["test"], line["row"], line["accuracy"]) for line in lines[:2]] == [
        ("same people", "untouched", "96.50"),
        ("same people", "fine-tuned", "99.00"),
    ]
    gain, low, high = (
        float(word.strip("[],")) for word in lines[0]["fine-tuned is better by"].split()
    )
    assert gain == 2.5
    assert 1 < low < 2.5 < high < 4
