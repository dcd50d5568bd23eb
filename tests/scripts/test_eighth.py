"""The experiment at an eighth of the compute: valid configs within the budget."""

import base64
from pathlib import Path

import numpy as np
import pytest

from recognition.parse import load_config
from scripts.experiments.eighth import (
    EPOCHS,
    QUARTER,
    against_baseline,
    all_runs,
    best_runs,
    candidates,
    run_experiment,
    table,
)
from scripts.experiments.eighth_plot import draw, points_of
from scripts.experiments.quarter_time import CONFIG, Record
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
        assert run.epochs * shares[run.row] <= (QUARTER if "quarter" in run.row else EPOCHS)
    # 24, 32 and 40 pixels, by the multiply-adds of convolutions: their areas, and rounding up.
    assert shares["reference"] == 1
    assert shares["sizes"] == pytest.approx(0.5 * 0.376 + 0.2 * 0.604 + 0.3, abs=0.01)


def _record(row: str, rate: float, seed: int, view1: float, lfw: float) -> Record:
    """A finished run whose first pairs are judged correctly."""
    figures = {}
    for name, percent, pairs in (("view1", view1, 3200), ("lfw", lfw, 6000)):
        right = np.arange(pairs) < percent / 100 * pairs
        packed = base64.b64encode(np.packbits(right).tobytes()).decode()
        figures[name] = {"accuracy": percent, "auc": 90.0, "pairs": pairs, "right": packed}
    cost = {"images": 100, "multiply_adds": 2e9, "steady_cpu_seconds": 50.0}
    return {"row": row, "rate": rate, "seed": seed, **cost, **figures}


def test_the_table_has_means_over_seeds_and_differences_of_equal_seeds() -> None:
    finished = [_record("muon", 0.1, seed, 80.0 + seed, 70) for seed in range(3)]
    finished += [_record("reference", rate, 1, 70 + rate, 70) for rate in (0.1, 0.5)]
    row, *_, best = table(finished)
    assert (row["seeds"], row["accuracy"]) == (3, "81.00")
    assert str(row["above the reference"]).startswith("+10.50 [")
    assert str(row["above the reference"]).endswith("(1 of the same seeds)")
    assert best["above the reference"] == ""


def test_the_winner_is_compared_with_the_baseline_at_its_chosen_rate() -> None:
    own = [_record("muon", 0.1, seed, 80, 84) for seed in range(2)]
    tuned = [_record("baseline", rate, 0, 80 + 10 * rate, 86) for rate in (0.1, 0.05)]
    tested = [_record("baseline", 0.1, 1, 80, 85), _record("linear", 0.1, 0, 80, 99)]
    chosen = best_runs([*tuned, *tested], "baseline")
    assert [(run["rate"], run["seed"]) for run in chosen] == [(0.1, 0), (0.1, 1)]
    row = against_baseline(own, chosen)
    assert (row["LFW"], row["baseline"], row["seeds"]) == ("84.00", "85.50", "2 and 2")
    assert str(row["difference"]).startswith("-1.50 [")
    assert row["steady CPU time"] == "1.000 of the baseline's"


def test_the_plot_has_every_finished_row_by_its_compute(tmp_path: Path) -> None:
    quarter = [{**_record("baseline", 0.1, 0, 80, 85), "multiply_adds": 16e9}]
    own = [_record("muon", 0.1, seed, 80, 84) for seed in range(2)]
    points = points_of(own, quarter)
    assert {(point.name, point.share, point.seeds) for point in points} == {
        ("baseline", 1.0, 1),
        ("muon", 0.125, 2),
    }
    muon = next(point for point in points if point.name == "muon")
    assert muon.above.value == pytest.approx(-1)
    assert len(draw(points).axes) == 1


def test_a_wrong_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="muno"):
        run_experiment(tmp_path, only=("muno",), list=True)
