"""The cleaning experiment: what is planted is known, and the tables are right on made-up rows."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from eval.cleaning.cut import Cut
from eval.cleaning.noise import Noise
from recognition.parse import load_config
from scripts.experiments import cleaning
from scripts.experiments._cleaning_tables import accuracy_table, found_table

ROOT = Path(__file__).parents[2]


def people() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(60), 20))


def test_settings_are_valid() -> None:
    config = load_config(ROOT / cleaning.CONFIG, list(cleaning.SETTINGS))
    assert (config.data.size, config.optim.batch_size) == (56, 32)
    assert set(cleaning.DO) == set(cleaning.ROWS)


def test_planted_errors() -> None:
    labels = people()
    planted = cleaning.plant(labels, 1)
    assert np.count_nonzero(planted.flipped) == 240
    assert len(planted.twins) == 6
    person_of = {label: label for label in range(60)} | {new: old for old, new in planted.twins}
    persons = np.array([person_of[label] for label in planted.labels.tolist()])
    assert np.array_equal(persons != labels, planted.flipped)  # a twin's label is not wrong
    for old, new in planted.twins:
        sizes = [np.count_nonzero((planted.labels == one) & ~planted.flipped) for one in (old, new)]
        assert min(sizes) >= 4
    assert not np.array_equal(planted.labels, cleaning.plant(labels, 2).labels)


def test_joined_labels() -> None:
    labels = people()
    joined, two = cleaning.join(labels, 1)
    assert len(two) == 6
    for label in np.unique(joined):
        assert len(np.unique(labels[joined == label])) == (2 if label in two else 1)


def test_noise_figures() -> None:
    flipped = np.array([True, True, False, True, False, False])
    own = np.array([-0.9, -0.5, -0.4, 0.1, 0.5, 0.9])
    nobody, cut = np.zeros(6), Cut(-0.3, 0.5, 0.9, 0.7)
    noise = Noise(np.array([0, 1, 2]), own, nobody, nobody, nobody, nobody, cut, cut)
    figures = cleaning.noise_figures(noise, flipped)
    assert (figures["precision"], figures["recall"]) == (66.67, 66.67)
    assert figures["best_recall"] == 66.67  # at a precision of 0.9: the first two


def test_tables(tmp_path: Path) -> None:
    for row, seed, wrong in (("noisy", 0, 60), ("noisy", 1, 80), ("cleaned", 0, 20)):
        right = np.arange(2000) >= wrong
        lfw = {
            "accuracy": 100 * right.mean(),
            "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        }
        noise = cleaning.found_of({1, 2, 3}, {2, 3, 4, 5})
        record = {"row": row, "seed": seed, "lfw": lfw, "cpu_seconds": 9.0, "noise": noise}
        (tmp_path / f"{row}_{seed}.json").write_text(json.dumps(record))
    noisy, cleaned = accuracy_table(tmp_path, cleaning.ROWS)
    assert (noisy["accuracy"], noisy["above noisy"]) == ("96.50", "")
    assert str(cleaned["above noisy"]).startswith("+2.00 [+1.")  # only with the seed of both
    found = found_table(tmp_path)
    assert [(line["vectors of"], line["seed"]) for line in found] == [
        ("cleaned", 0),
        ("noisy", 0),
        ("noisy", 1),
    ]
    assert (found[0]["precision"], found[0]["recall"]) == (66.67, 50.0)
