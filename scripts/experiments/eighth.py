"""Trains the candidates for the baseline's accuracy at an eighth of its compute.

    python -m scripts.experiments.eighth FACES

Data, network, baseline and lists of pairs are those of the quarter-time experiment
(scripts/experiments/quarter_time.py). Every row spends at most an eighth of the baseline's images ×
multiply-adds. Candidates are compared on the 3,200 pairs of LFW's View 1, with three seeds, at each
peak learning rate that is listed for their row. The runs of the first seed come first.

Every run is train.py with configs/quarter_time.yaml and the overrides that --list prints. A
finished run is one JSON file in --results and is not run again, and an unfinished run continues.
--table-only prints the means over the seeds of the finished runs.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.parts import hint
from scripts._tables import TableRow, show_table
from scripts.experiments.quarter_time import Record, Run, read_records, schedule, work
from tools._cli import command

EPOCHS = 6  # at 40 pixels: an eighth of the baseline's 48
SEEDS = 3
LARGE = "optim.batch_size=64"
LINEAR = schedule("polynomial", power=1)
LINEAR_LARGE = LINEAR.replace("warmup_steps: 100", "warmup_steps: 25")
# A quarter of the multiply-adds of 40 pixels would be too few; these cost 0.61 of them.
SIZES, SIZES_EPOCHS = "data.size_schedule={24: 0.5, 32: 0.2}", 9


@dataclass(frozen=True)
class Candidate:
    """A row. rates: peak learning rates (`optim.lr`), the first of which matters most."""

    rates: tuple[float, ...]
    overrides: tuple[str, ...]
    epochs: int = EPOCHS


def candidates() -> dict[str, Candidate]:
    """Every row by name, the reference first and the combinations last."""
    muon = (LINEAR_LARGE, LARGE, "optim.name=muon")
    return {
        "reference": Candidate((0.05, 0.1, 0.025), (LINEAR,)),
        "batch_64": Candidate((0.1, 0.2), (LINEAR_LARGE, LARGE)),
        "muon": Candidate((0.1, 0.05, 0.2), muon),
        "sizes": Candidate((0.05, 0.1), (LINEAR, SIZES), SIZES_EPOCHS),
        "centers": Candidate((0.05,), (LINEAR, "optim.lr_factors={centers: 10}")),
        "bias": Candidate(
            (0.05,), (LINEAR, 'optim.lr_factors={"*.bias": 16}', "optim.no_decay_1d=true")
        ),
        "nesterov": Candidate((0.05,), (LINEAR, "optim.nesterov=true")),
        "muon_sizes": Candidate((0.1, 0.05, 0.2), (*muon, SIZES), SIZES_EPOCHS),
        "muon_centers": Candidate((0.1,), (*muon, "optim.lr_factors={centers: 5}")),
        "muon_sizes_centers": Candidate(
            (0.1,), (*muon, SIZES, "optim.lr_factors={centers: 5}"), SIZES_EPOCHS
        ),
    }


def all_runs() -> Iterator[Run]:
    """Every run, in the order in which they are made."""
    for seed in range(SEEDS):
        for name, row in candidates().items():
            for rate in row.rates:
                yield Run(name, rate, seed, row.epochs, row.overrides)


def table(finished: Sequence[Record]) -> Iterator[TableRow]:
    """A line per row and rate: means over its seeds on View 1, and its cost per run."""
    grouped: dict[tuple[str, float], list[Record]] = {}
    for run in finished:
        grouped.setdefault((run["row"], run["rate"]), []).append(run)
    for (row, rate), runs in grouped.items():
        yield {
            "row": row,
            "peak rate": f"{rate:g}",
            "seeds": len(runs),
            "View 1 accuracy": f"{statistics.fmean(run['view1']['accuracy'] for run in runs):.2f}",
            "View 1 AUC": f"{statistics.fmean(run['view1']['auc'] for run in runs):.2f}",
            "images": runs[0]["images"],
            "multiply-adds (1e9)": round(runs[0]["multiply_adds"] / 1e9),
            "steady CPU s": round(statistics.fmean(run["steady_cpu_seconds"] for run in runs)),
        }


def run_experiment(
    faces: Path,
    *,
    only: tuple[str, ...] = (),
    runs: Path = Path("runs/eighth"),
    results: Path = Path("docs/results/eighth"),
    list: bool = False,
    table_only: bool = False,
) -> None:
    """Do all runs.

    faces: folder of the sets and lists.
    only: names of rows, instead of all.
    runs: folder for run folders.
    results: folder for finished runs.
    list: print the runs and their overrides, and stop.
    table_only: print the table of the finished runs, and stop.
    """
    known = candidates()
    for name in only:
        if name not in known:
            raise ValueError(f"--only {name}: no such row; {hint(name, known)}")
    chosen = [run for run in all_runs() if not only or run.row in only]
    if list:
        for run in chosen:
            done = "done" if (results / f"{run.name}.json").exists() else ""
            overrides = " ".join(f"'{override}'" for override in run.overrides)
            print(
                f"{run.name:<28}{run.epochs:>3} epochs  {done:<6}optim.lr={run.rate:g} {overrides}"
            )
        return
    torch.set_num_threads(1)
    while not table_only and work(chosen, faces, runs, results):
        pass
    show_table(table(read_records(results)))


main = command(run_experiment)
