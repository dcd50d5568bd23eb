"""Fine-tuning beside training from scratch and the untouched model, on one's own people.

    python -m scripts.experiments.fine_tuning --model runs/quickstart
    python -m scripts.experiments.fine_tuning --table-only

Each seed has 30 drawn people of its own, with 12 pictures each for training (configs/finetune.yaml)
and 20 others for the test. Every finished run leaves a JSON file in docs/results/fine_tuning, so
the command may be stopped and started again. Differences between rows are paired: their 95 %
intervals come from 2,000 bootstrap resamples of the seeds, and of the test pairs of each seed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.files import atomic_write
from data.pairs.drawn import from_faces
from eval.metrics.paired import seedwise_difference
from scripts._tables import TableRow, show_table
from scripts.experiments._judge import judge_model, right_of
from scripts.experiments._train import run_training
from tools._cli import command

CONFIG = "configs/finetune.yaml"
SEEDS = 3
UNTOUCHED = "untouched"
FIGURES = ("accuracy", "tar@0.001", "auc", "eer")
SCRATCH = ["init.weights=null", "init.centers=random", "optim.lr=0.1", "optim.lr_factors=null"]
ROWS: dict[str, list[str]] = {
    UNTOUCHED: [],
    "fine-tuned": [],
    "scratch": SCRATCH,
    "random centers": ["init.centers=random"],
    "scratch, 4 × the images": [*SCRATCH, "optim.epochs=40"],
}


def people(seed: int) -> str:
    """The 30 people of a seed, none of whom the quickstart's model has seen."""
    return f"synthetic:identities=30,first={200_000 + 1000 * seed}"


SETS: dict[str, Callable[[int], str]] = {
    "same_people": lambda seed: f"{people(seed)},images=20,first_image=12",
    "other_people": lambda seed: "synthetic:identities=100,images=10,first=100000",
}


def train(row: str, seed: int, model: Path, folder: Path) -> float:
    """Run train.py, or continue it. Returns the CPU seconds of this call."""
    options = [f"init.weights={model}", f"data.train={people(seed)},images=12", *ROWS[row]]
    run = [f"run.seed={seed}", "evaluate.sets=[]", "data.threads=1"]
    return run_training(CONFIG, [*options, *run], folder)


def test(model: Path, faces: str) -> dict[str, Any]:
    """Figures on 2,000 pairs of a set, with the decisions."""
    return judge_model(model, faces, from_faces(faces, count=2000), FIGURES)


def finish(row: str, seed: int, model: Path, runs: Path, results: Path) -> None:
    """Train and test one row with one seed, unless its file exists already."""
    name = f"{row}_{seed}".replace(" ", "_").replace(",", "").replace("×", "x").replace("-", "_")
    path = results / f"{name}.json"
    if path.exists():
        return
    trained = row != UNTOUCHED
    seconds = train(row, seed, model, runs / name) if trained else 0.0
    place = runs / name if trained else model
    figures = {key: test(place, faces(seed)) for key, faces in SETS.items()}
    record = {"row": row, "seed": seed, "options": ROWS[row], "cpu_seconds": round(seconds, 1)}
    results.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump({**record, "sets": figures}, file, indent=1)
    print(f"{name}: {figures['same_people']['accuracy']:.2f} %", flush=True)


def table(results: Path) -> list[TableRow]:
    """One line per row and set: means over the seeds, and what fine-tuning gains above it."""
    records = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    lines: list[TableRow] = []
    for key in SETS:
        found = {
            row: [one["sets"][key] for one in records if one["row"] == row]
            for row in ROWS
            if any(one["row"] == row for one in records)
        }
        right = {row: np.stack([*map(right_of, own)]) for row, own in found.items()}
        for row, own in found.items():
            line: dict[str, object] = {"test": key.replace("_", " "), "row": row}
            line["seeds"] = len(own)
            for figure in ("accuracy", "tar@0.001", "auc"):
                line[figure] = f"{np.mean([one[figure] for one in own]):.2f}"
            same_seeds = len(own) == len(found.get("fine-tuned", []))
            other = row != "fine-tuned" and same_seeds
            line["fine-tuned is better by"] = (
                str(seedwise_difference(right["fine-tuned"], right[row])) if other else ""
            )
            lines.append(line)
    return lines


def run_experiment(
    *,
    model: Path = Path("runs/quickstart"),
    seeds: int = SEEDS,
    runs: Path = Path("runs/fine_tuning"),
    results: Path = Path("docs/results/fine_tuning"),
    table_only: bool = False,
) -> None:
    """Do what is not yet done, and print the table.

    model: the run folder of scripts/quickstart.sh.
    seeds: number of seeds.
    runs: folder for run folders.
    results: folder for finished runs.
    table_only: print the table of the finished runs, and train nothing.
    """
    if not table_only:
        torch.set_num_threads(1)
        for row in ROWS:
            for seed in range(seeds):
                finish(row, seed, model, runs, results)
    show_table(table(results))


main = command(run_experiment)
