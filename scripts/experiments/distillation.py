"""A small network taught by a larger one, beside the same network alone, on real faces.

    python -m scripts.experiments.distillation --faces FOLDER
    python -m scripts.experiments.distillation --table-only

FOLDER holds what configs/faces_cpu.yaml names. The teacher is that config with SGD at
96 pixels, shortened to four epochs. Every finished run leaves a JSON file in
docs/results/distillation, so the command may be stopped and started again. Differences between rows
are paired (eval/metrics/paired.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from data.files import atomic_write
from data.pairs.lists import from_list
from eval.metrics.paired import accuracy_difference
from scripts._tables import TableRow, show_table
from scripts.experiments._judge import judge_model, right_of
from scripts.experiments._train import run_training
from tools._cli import command

CONFIG = "configs/faces_cpu.yaml"
SEEDS = 3
TEACHER, ALONE = "teacher", "alone"
PLAIN = [
    *("data.threads=1", "evaluate.every_epochs=0"),
    *("data.size=96", "data.size_schedule=null"),
    *("optim.name=sgd", "optim.nesterov=true", "optim.lr=0.1", "optim.clip_norm=5"),
    "scheduler={name: cosine, warmup_steps: 200}",
]
FIGURES = ("accuracy", "tar@0.001", "auc")
OF_TEACHER = ["backbone.depth=18", "optim.epochs=4", "scheduler.warmup_steps=50"]
OF_STUDENT = [
    *("backbone={name: mobilefacenet, width: 16, embedding: 256}", "data.size=48"),
    *("optim.epochs=4", "scheduler.warmup_steps=50"),
    *("run.precision=fp32", "run.compile=false"),
]
ROWS: dict[str, list[str]] = {
    ALONE: [],
    "cosine": ["teacher.cosine=24"],
    "centers": ["teacher.cosine=0", "teacher.centers=1", "teacher.classifier=false"],
}


def finish_teacher(faces: Path, teacher: Path, results: Path) -> None:
    """Train the teacher, unless it is there, and keep the figures of its own evaluation."""
    written = teacher / "results.json"
    if written.exists() and (results / f"{TEACHER}_0.json").exists():
        return
    seconds = None  # of a teacher that is there already
    if not written.exists():
        seconds = run_training(CONFIG, [f"data.root={faces}", *PLAIN, *OF_TEACHER], teacher)
    found = json.loads(written.read_text())["results"][0]["metrics"]
    keep(TEACHER, 0, OF_TEACHER, seconds, found, results)


def finish(row: str, seed: int, faces: Path, teacher: Path, runs: Path, results: Path) -> None:
    """Train and test one row with one seed, unless its file exists already."""
    if (results / f"{row}_{seed}.json").exists():
        return
    taught = [] if row == ALONE else [f"teacher.model={teacher}"]
    options, folder = [*OF_STUDENT, *ROWS[row]], runs / f"{row}_{seed}"
    plain = [f"data.root={faces}", "evaluate.sets=[]", f"run.seed={seed}"]
    seconds = run_training(CONFIG, [*PLAIN, *plain, *taught, *options], folder)
    pairs = from_list(faces / "protocol/pairs.txt", faces / "lfw_112.zip")
    keep(row, seed, options, seconds, judge_model(folder, "lfw", pairs, (*FIGURES, "eer")), results)


def keep(
    row: str,
    seed: int,
    options: list[str],
    seconds: float | None,
    figures: TableRow,
    results: Path,
) -> None:
    """Write the record of a finished run, with those figures of LFW that the table needs."""
    record = {
        "row": row,
        "seed": seed,
        "options": options,
        "cpu_seconds": seconds and round(seconds, 1),
    }
    kept = {key: figures[key] for key in (*FIGURES, "right") if key in figures}
    results.mkdir(parents=True, exist_ok=True)
    with atomic_write(results / f"{row}_{seed}.json", "w") as file:
        json.dump({**record, "lfw": kept}, file, indent=1)
    print(f"{row}_{seed}: {figures['accuracy']:.2f} %", flush=True)


def table(results: Path) -> list[TableRow]:
    """One line per row: means over the seeds, and what it gains above the network alone."""
    records = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    found = {
        row: {one["seed"]: one["lfw"] for one in records if one["row"] == row}
        for row in (TEACHER, *ROWS)
    }
    lines: list[TableRow] = []
    for row, own in found.items():
        if not own:
            continue
        line: dict[str, object] = {"row": row, "seeds": len(own)}
        for figure in FIGURES:
            line[figure] = f"{np.mean([one[figure] for one in own.values()]):.2f}"
        compared = row not in (TEACHER, ALONE) and found[ALONE]
        line["better than alone by"] = (
            str(accuracy_difference(decisions(own), decisions(found[ALONE]))) if compared else ""
        )
        lines.append(line)
    return lines


def decisions(figures: Mapping[int, TableRow]) -> np.ndarray:
    """Which of LFW's pairs each seed of a row judged correctly, bool (seeds, 6000)."""
    return np.stack([right_of(figures[seed]) for seed in sorted(figures)])


def run_experiment(
    *,
    faces: Path = Path("faces"),
    seeds: int = SEEDS,
    rows: str = ",".join(ROWS),
    teacher: Path = Path("runs/distillation/teacher"),
    runs: Path = Path("runs/distillation"),
    results: Path = Path("docs/results/distillation"),
    table_only: bool = False,
) -> None:
    """Do what is not yet done, and print the table.

    faces: folder with train.rec, lfw_112.zip and protocol/pairs.txt.
    seeds: number of seeds.
    rows: the rows to train, with commas between them.
    teacher: run folder of the teacher, which is trained if it has no model.
    runs: folder for run folders.
    results: folder for finished runs.
    table_only: print the table of the finished runs, and train nothing.
    """
    if not table_only:
        torch.set_num_threads(1)
        finish_teacher(faces, teacher, results)
        for seed in range(seeds):
            for row in rows.split(","):
                finish(row, seed, faces, teacher, runs, results)
    show_table(table(results))


main = command(run_experiment)
