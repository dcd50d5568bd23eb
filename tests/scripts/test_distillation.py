"""The distillation experiment: its configs are valid, and its table is right on made-up runs."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from recognition.parse import load_config
from scripts.experiments.distillation import (
    ALONE,
    CONFIG,
    OF_STUDENT,
    OF_TEACHER,
    PLAIN,
    ROWS,
    table,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_valid_config(row: str) -> None:
    taught = [] if row == ALONE else ["teacher.model=x"]
    config = load_config(ROOT / CONFIG, [*PLAIN, *taught, *OF_STUDENT, *ROWS[row]])
    teacher = load_config(ROOT / CONFIG, [*PLAIN, *OF_TEACHER])
    assert config.teacher.given == (row != ALONE)
    assert config.backbone.options["embedding"] == teacher.backbone.options["embedding"]


def test_the_table_has_means_and_differences(tmp_path: Path) -> None:
    wrong = {"teacher": (600,), ALONE: (1800, 1900), "cosine": (1500, 1500)}
    for row, counts in wrong.items():
        for seed, count in enumerate(counts):
            right = np.arange(6000) >= count
            packed = base64.b64encode(np.packbits(right).tobytes()).decode()
            figures = {"accuracy": 100 * right.mean(), "tar@0.001": 5.0, "auc": 9.0}
            record = {"row": row, "seed": seed, "lfw": {**figures, "right": packed}}
            (tmp_path / f"{row}{seed}.json").write_text(json.dumps(record))
    lines = {line["row"]: line for line in table(tmp_path)}
    assert lines["teacher"]["accuracy"] == "90.00"
    assert lines["cosine"]["seeds"] == 2
    assert str(lines["cosine"]["better than alone by"]).startswith("+5.83 [")
    assert lines["teacher"]["better than alone by"] == ""
