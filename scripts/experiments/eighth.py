"""Trains the candidates for the baseline's accuracy at an eighth of its compute.

    python -m scripts.experiments.eighth FACES

Data, network, baseline and lists of pairs are those of the quarter-time experiment
(scripts/experiments/quarter_time.py). A row spends at most an eighth of the baseline's images ×
multiply-adds, unless its name says otherwise. Candidates are compared on the 3,200 pairs of LFW's
View 1, with three seeds, at each peak learning rate that is listed for their row. The runs of the
first seed come first. The winner has five seeds, and is compared with the baseline on the 6,000
pairs of LFW.

Every run is train.py with configs/quarter_time.yaml and the overrides that --list prints. A
finished run is one JSON file in --results and is not run again, and an unfinished run continues.
--table-only prints the tables of the finished runs.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.parts import hint
from eval.metrics.paired import accuracy_difference
from scripts._tables import TableRow, show_table
from scripts.experiments._judge import right_of
from scripts.experiments.quarter_time import (
    FALL,
    IMAGES,
    Record,
    Run,
    read_records,
    schedule,
    show_runs,
    work,
)
from tools._cli import command

REFERENCE, WINNER = "reference", "muon"
EPOCHS = 6  # at 40 pixels: an eighth of the baseline's 48
QUARTER = 2 * EPOCHS
SEEDS = 3
LARGE = "optim.batch_size=64"
LINEAR = schedule("polynomial", power=1)
LINEAR_LARGE = LINEAR.replace("warmup_steps: 100", "warmup_steps: 25")
# λ as in the quarter-time experiment: a quarter of the expected fall of the loss, by steps.
SLOPE = FALL / 4 / (IMAGES // 64 * QUARTER)
FASTFACE = schedule("fastface", for_horizon="true", threshold=f"{SLOPE:.3e}")
FASTFACE_LARGE = FASTFACE.replace("warmup_steps: 100", "warmup_steps: 25")
# A quarter of the multiply-adds of 40 pixels would be too few; these cost 0.61 of them.
SIZES, SIZES_EPOCHS = "data.size_schedule={24: 0.5, 32: 0.2}", 9


@dataclass(frozen=True)
class Candidate:
    """A row. rates: peak learning rates (`optim.lr`), the first of which matters most."""

    rates: tuple[float, ...]
    overrides: tuple[str, ...]
    epochs: int = EPOCHS
    seeds: int = SEEDS


def candidates() -> dict[str, Candidate]:
    """Every row by name, the reference first and the combinations last."""
    clipped = (LINEAR_LARGE, LARGE, "optim.name=muon")
    muon = (*clipped, "optim.clip_norm=null")
    fastface = (FASTFACE_LARGE, *muon[1:])
    centers = "optim.lr_factors={centers: 5}"
    return {
        REFERENCE: Candidate((0.05, 0.1, 0.025), (LINEAR,)),
        "batch_64": Candidate((0.1, 0.2), (LINEAR_LARGE, LARGE)),
        WINNER: Candidate((0.1, 0.2), muon, seeds=5),
        "muon_clipped": Candidate((0.1,), clipped),
        "muon_without_decay": Candidate((0.1,), (*muon, "optim.muon_weight_decay=5e-4")),
        "muon_decay_0.25": Candidate((0.1,), (*muon, "optim.muon_weight_decay=0.25")),
        "muon_decay_1": Candidate((0.1,), (*muon, "optim.muon_weight_decay=1"), seeds=1),
        "muon_0.01": Candidate((0.1,), (*muon, "optim.muon_lr=0.01"), seeds=1),
        "muon_0.04": Candidate((0.1,), (*muon, "optim.muon_lr=0.04"), seeds=1),
        "sizes": Candidate((0.05,), (LINEAR, SIZES), SIZES_EPOCHS),
        "centers": Candidate((0.05,), (LINEAR, "optim.lr_factors={centers: 10}")),
        "bias": Candidate(
            (0.05,), (LINEAR, 'optim.lr_factors={"*.bias": 16}', "optim.no_decay_1d=true")
        ),
        "nesterov": Candidate((0.05,), (LINEAR, "optim.nesterov=true")),
        "muon_sizes": Candidate((0.1,), (*muon, SIZES), SIZES_EPOCHS),
        "muon_centers": Candidate((0.1,), (*muon, centers)),
        # Not at an eighth: for the curve of accuracy against compute.
        "muon_sixteenth": Candidate((0.2,), muon, EPOCHS // 2),
        "muon_quarter": Candidate((0.2,), muon, QUARTER, seeds=5),
        "muon_quarter_fastface": Candidate((0.2,), fastface, QUARTER, seeds=5),
    }


def all_runs() -> Iterator[Run]:
    """Every run, in the order in which they are made."""
    rows = candidates()
    for seed in range(max(row.seeds for row in rows.values())):
        for name, row in rows.items():
            for rate in row.rates if seed < row.seeds else ():
                yield Run(name, rate, seed, row.epochs, row.overrides)


def table(finished: Sequence[Record]) -> Iterator[TableRow]:
    """A line per row and rate on View 1: means, points above the reference, cost per run.

    Only seeds that the reference has as well are compared, at its best rate.
    """
    grouped: dict[tuple[str, float], dict[int, Record]] = {}
    for run in finished:
        grouped.setdefault((run["row"], run["rate"]), {})[run["seed"]] = run
    own = {rate: runs for (row, rate), runs in grouped.items() if row == REFERENCE}
    best = max(own, key=lambda rate: _mean(own[rate], "accuracy"), default=None)
    for (row, rate), runs in grouped.items():
        above = ""
        if best is not None and (row, rate) != (REFERENCE, best):
            seeds = sorted(runs.keys() & own[best].keys())
            one, other = (
                np.stack([right_of(side[seed]["view1"]) for seed in seeds])
                for side in (runs, own[best])
            )
            above = f"{accuracy_difference(one, other)} ({len(seeds)} of the same seeds)"
        first = next(iter(runs.values()))
        seconds = statistics.fmean(run["steady_cpu_seconds"] for run in runs.values())
        yield {
            "row": row,
            "peak rate": f"{rate:g}",
            "seeds": len(runs),
            "accuracy": f"{_mean(runs, 'accuracy'):.2f}",
            "AUC": f"{_mean(runs, 'auc'):.2f}",
            "above the reference": above,
            "images": first["images"],
            "multiply-adds (1e9)": round(first["multiply_adds"] / 1e9),
            "steady CPU s": round(seconds),
        }


def _mean(runs: Mapping[int, Record], figure: str) -> float:
    return statistics.fmean(run["view1"][figure] for run in runs.values())


def against_baseline(finished: Sequence[Record], baseline: Sequence[Record]) -> TableRow:
    """The winner and the baseline at its chosen rate, on the 6,000 pairs of LFW."""
    own = best_runs(finished, WINNER)
    seconds, products = (
        statistics.fmean(run[key] for run in own) / statistics.fmean(run[key] for run in baseline)
        for key in ("steady_cpu_seconds", "multiply_adds")
    )
    one, other = (np.stack([right_of(run["lfw"]) for run in side]) for side in (own, baseline))
    return {
        "row": WINNER,
        "seeds": f"{len(own)} and {len(baseline)}",
        "LFW": f"{100 * one.mean():.2f}",
        "baseline": f"{100 * other.mean():.2f}",
        "difference": str(accuracy_difference(one, other)),
        "multiply-adds": f"{products:.3f} of the baseline's",
        "steady CPU time": f"{seconds:.3f} of the baseline's",
    }


def best_runs(finished: Sequence[Record], row: str) -> list[Record]:
    """A row's finished runs at the rate that has the most of them, then the best on View 1."""
    runs: dict[float, list[Record]] = {}
    for run in finished:
        if run["row"] == row:
            runs.setdefault(run["rate"], []).append(run)

    def order(rate: float) -> tuple[int, float]:
        return len(runs[rate]), statistics.fmean(run["view1"]["accuracy"] for run in runs[rate])

    return runs[max(runs, key=order)] if runs else []


def run_experiment(
    faces: Path,
    *,
    only: tuple[str, ...] = (),
    runs: Path = Path("runs/eighth"),
    results: Path = Path("docs/results/eighth"),
    baseline: Path = Path("docs/results/quarter_time"),
    list: bool = False,
    table_only: bool = False,
) -> None:
    """Do all runs.

    faces: folder of the sets and lists.
    only: names of rows, instead of all.
    runs: folder for run folders.
    results: folder for finished runs.
    baseline: folder for the finished runs of the quarter-time experiment.
    list: print the runs and their overrides, and stop.
    table_only: print the table of the finished runs, and stop.
    """
    known = candidates()
    for name in only:
        if name not in known:
            raise ValueError(f"--only {name}: no such row; {hint(name, known)}")
    chosen = [run for run in all_runs() if not only or run.row in only]
    if list:
        show_runs(chosen, results)
        return
    torch.set_num_threads(1)
    while not table_only and work(chosen, faces, runs, results):
        pass
    finished = read_records(results)
    show_table(table(finished))
    compared = best_runs(read_records(baseline), "baseline")
    if compared and any(run["row"] == WINNER for run in finished):
        print()
        show_table([against_baseline(finished, compared)])


main = command(run_experiment)
