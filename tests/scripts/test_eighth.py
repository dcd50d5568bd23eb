"""The experiment at an eighth of the compute: valid configs within the budget."""

from pathlib import Path

import pytest

from recognition.parse import load_config
from scripts.experiments.eighth import EPOCHS, all_runs, candidates, run_experiment, table
from scripts.experiments.quarter_time import CONFIG
from tools._backbone import share_of_full_size


def test_every_run_is_valid_and_spends_at_most_an_eighth() -> None:
    runs = [*all_runs()]
    assert len({run.name for run in runs}) == len(runs)
    assert len({*candidates()} - {"reference"}) >= 8
    shares = {}
    for run in {run.row: run for run in runs}.values():
        options = [f"optim.epochs={run.epochs}", f"optim.lr={run.rate}", *run.overrides]
        config = load_config(CONFIG, [*options, "run.output=unused"])
        shares[run.row] = share_of_full_size(config)
        assert run.epochs * shares[run.row] <= EPOCHS
    # 24, 32 and 40 pixels, by the multiply-adds of convolutions: their areas, and rounding up.
    assert shares["reference"] == 1
    assert shares["sizes"] == pytest.approx(0.5 * 0.376 + 0.2 * 0.604 + 0.3, abs=0.01)


def test_the_table_has_means_over_seeds() -> None:
    finished = [
        {
            "row": "muon",
            "rate": 0.1,
            "seed": seed,
            "view1": {"accuracy": 80.0 + seed, "auc": 90.0},
            "images": 100,
            "multiply_adds": 2e9,
            "steady_cpu_seconds": 50.0,
        }
        for seed in range(3)
    ]
    (row,) = table(finished)
    assert (row["seeds"], row["View 1 accuracy"]) == (3, "81.00")


def test_a_wrong_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="muno"):
        run_experiment(tmp_path, only=("muno",), list=True)
