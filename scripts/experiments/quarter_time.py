"""Does FastFace train in a quarter of the time? A converged baseline, and every schedule at a
quarter of its images.

    python -m scripts.experiments.quarter_time FACES [--parts a b] [--only NAME …] [--list]

FACES holds train.rec, lfw_112.zip and protocol/ (LFW's lists). Parts: `a` trains on train.rec and
tests on the 6,000 LFW pairs; `b` adds the people of LFW's View 1 training list and tests on
pairsDevTest; `doubled` gives the baselines twice the epochs, which shows whether they had converged
(and twice again on part a's data); `c` is part a with the doubled baseline as its baseline; `tune`
chose the base rate, on pairsDevTrain; `sensitivity` varies FastFace's constants on part a's data.

Every run is train.py with configs/quarter_time.yaml and the overrides that --list prints. A
finished run is one JSON file in --results and is not run again; an unfinished one goes on from its
checkpoint. Several of these commands may run side by side: each takes runs that no other holds.
Tables and figures: `python -m scripts.experiments.quarter_report`.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.files import atomic_write
from scripts.experiments.view1_faces import alternating, write_view1

CONFIG = "configs/quarter_time.yaml"
IMAGES = {"train": 5_998, "view1": 15_523}
BATCH = 16
EPOCHS = {"train": 24, "view1": 8}  # of a baseline
TUNE_EPOCHS = 16
# of the loss over a run, about; sets λ, which is in units of the loss
FALL = {
    "train": 10.0,
    "view1": 12.0,
}
POINTS = 200  # kept of a loss curve


@dataclass(frozen=True)
class Run:
    """One training: part of the experiment, row of its table, seed, `IMAGES` it trains on, epochs,
    overrides."""

    part: str
    row: str
    seed: int
    data: str
    epochs: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.part}_{self.row}_{self.seed}"


def steps(data: str, epochs: int) -> int:
    """Optimizer steps of a run: incomplete batches are dropped."""
    return IMAGES[data] // BATCH * epochs


def multi_step(epochs: int) -> str:
    """The baseline's schedule: ×0.1 after a half, three quarters and nine tenths of the run."""
    return f"scheduler={{name: multi_step, milestones: {[epochs * f for f in (0.5, 0.75, 0.9)]}, warmup_steps: 100}}"


def moving_haar(data: str, total: int, window: float) -> str:
    """Windows of that fraction of the run, and the λ at which a steady fall is as fast as
    FastFace's λ of this run."""
    m = round(window * total)
    threshold = FALL[data] / 4 / total * m / 4
    return f"scheduler={{name: moving_haar, window: {m}, threshold: {threshold:.6f}, warmup_steps: 100}}"


def schedules(data: str, epochs: int) -> dict[str, str]:
    """Row -> override of every schedule that is compared at a quarter of the baseline's images.

    λ of FastFace is a quarter of the expected fall of the loss over the run's length, as it was in
    the published run (λT = 10 where the loss fell by 40); `fastface_published` has the published
    numbers as they are.
    """
    total = steps(data, epochs)
    return {
        "fastface": f"scheduler={{name: fastface, for_horizon: true, threshold: {FALL[data] / 4 / total:.3e}, "
        "warmup_steps: 100}",
        "cosine": "scheduler={name: cosine, warmup_steps: 100}",
        "multi_step": multi_step(epochs),
        "polynomial": "scheduler={name: polynomial, warmup_steps: 100}",
        "constant": "scheduler={name: constant, warmup_steps: 100}",
        "moving_haar": moving_haar(
            data, total, 4000 / 202_325
        ),  # the published window's share of its run
        "moving_haar_wide": moving_haar(data, total, 0.1),
        "fastface_published": "scheduler={name: fastface, warmup_steps: 100}",
    }


def all_runs() -> list[Run]:
    """Every run, in the order in which they make the tables useful."""
    tuned = multi_step(TUNE_EPOCHS)
    runs = [
        Run("tune", f"lr{r}", 0, "train", TUNE_EPOCHS, (tuned, f"optim.lr={r}"))
        for r in (0.025, 0.05, 0.1)
    ]
    for part, data, seeds in (("a", "train", [0]), ("b", "view1", [0]), ("a", "train", [1, 2])):
        epochs = EPOCHS[data]
        for seed in seeds:
            runs.append(Run(part, "baseline", seed, data, epochs, (multi_step(epochs),)))
            for row, override in schedules(data, epochs // 4).items():
                runs.append(Run(part, row, seed, data, epochs // 4, (override,)))
        if 0 in seeds:
            runs.append(Run("doubled", data, 0, data, 2 * epochs, (multi_step(2 * epochs),)))
    longer = 2 * EPOCHS["train"]
    runs.append(Run("doubled", "train_again", 0, "train", 2 * longer, (multi_step(2 * longer),)))
    for seed in (0, 1, 2):
        if seed > 0:
            runs.append(Run("doubled", "train", seed, "train", longer, (multi_step(longer),)))
        for row, override in schedules("train", longer // 4).items():
            runs.append(Run("c", row, seed, "train", longer // 4, (override,)))
    return runs + sensitivity_runs()


def sensitivity_runs() -> list[Run]:
    """FastFace with one constant changed at a time: τ, λT, αT = βT, δ.

    The usual α T is 20, a tenth of the published one: with more, the noise of so short a run hides
    every standstill.
    """
    epochs = EPOCHS["train"] // 4
    total = steps("train", epochs)
    usual = {"tau": 0.05, "lambda": FALL["train"] / 4, "alpha": 20.0, "delta": 2.0}
    changed = {"lambda": (1.0, 6.0), "alpha": (10.0, 60.0), "tau": (0.02, 0.1), "delta": (1.5, 4.0)}
    cases = [("usual", usual)]
    cases += [
        (f"{key}{value:g}", {**usual, key: value})
        for key, values in changed.items()
        for value in values
    ]
    runs = []
    for row, case in cases:
        rate = case["alpha"] / total
        options = f"alpha: {rate:.5f}, beta: {rate:.5f}, threshold: {case['lambda'] / total:.3e}"
        options += f", patience_fraction: {case['tau']}, factor: {1 / case['delta']:.4f}, warmup_steps: 100"
        runs.append(
            Run(
                "sensitivity",
                row,
                0,
                "train",
                epochs,
                (f"scheduler={{name: fastface, {options}}}",),
            )
        )
    return runs


def train(run: Run, faces: Path, runs: Path) -> dict[str, float]:
    """Run or finish train.py; CPU seconds of what it did now, and whether that was all of it."""
    source = (
        [f"data.root={faces}"]
        if run.data == "train"
        else [f"data.train={view1(faces, runs) / 'train.rec'}"]
    )
    folder = runs / run.name
    command = [
        sys.executable,
        "train.py",
        "--config",
        CONFIG,
        "--resume",
        *source,
        f"run.output={folder}",
    ]
    command += [
        "evaluate.sets=[]",
        f"optim.epochs={run.epochs}",
        f"run.seed={run.seed}",
        *run.overrides,
    ]
    started_before = (folder / "metrics.jsonl").exists()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(runs / f"{run.name}.log", "a") as log:
        subprocess.run(
            command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": round(seconds, 1), "resumed": started_before}


def view1(faces: Path, runs: Path) -> Path:
    """The folder of View 1's record file and test pairs, made the first time."""
    out = runs / "view1"
    if not (out / "pairs.txt").exists():
        write_view1(faces, out)
    return out


def test(run: Run, faces: Path, runs: Path) -> tuple[dict[str, float], np.ndarray]:
    """Figures of the trained model on the run's test pairs, and bool (P,): which pairs the ten
    folds get right."""
    from data.pairs.lists import from_list
    from eval.embed import embed_views
    from eval.metrics import verification as metrics
    from recognition.embedder import load_embedder

    pairs_file = faces / "protocol/pairs.txt"
    if run.data == "view1":
        pairs_file = view1(faces, runs) / "pairs.txt"
    elif run.part == "tune":
        pairs_file = runs / "tune_pairs.txt"
        with atomic_write(pairs_file, "w") as file:
            file.write(alternating(faces / "protocol/pairsDevTrain.txt"))
    pairs = from_list(pairs_file, faces / "lfw_112.zip")
    embed, size = load_embedder(runs / run.name, "cpu")
    plain, mirrored = embed_views(embed, pairs.images, size, mirror=True)
    assert mirrored is not None
    distances = metrics.pair_distances(plain + mirrored, pairs.first, pairs.second)
    folds = metrics.grid_accuracy(distances, pairs.same)
    right = (distances < folds.thresholds[metrics.fold_of(len(distances))]) == pairs.same
    curve = metrics.roc(-distances, pairs.same)
    figures = {"accuracy": 100 * folds.mean, "accuracy_std": 100 * folds.std}
    figures |= {"exact_accuracy": 100 * metrics.exact_accuracy(distances, pairs.same).mean}
    figures |= {"tar@0.01": 100 * metrics.tar_at_far(curve, 1e-2), "auc": 100 * metrics.auc(curve)}
    return figures, right


def loss_curve(folder: Path) -> dict[str, list[float]]:
    """steps, losses and rates of metrics.jsonl, averaged down to at most POINTS points."""
    from recognition.logs import read_metrics

    lines = [line for line in read_metrics(folder) if "loss" in line]
    parts = np.array_split(np.arange(len(lines)), min(POINTS, len(lines)))
    return {
        "step": [lines[part[-1]]["step"] for part in parts],
        "loss": [round(statistics.fmean(lines[i]["loss"] for i in part), 4) for part in parts],
        "learning_rate": [lines[part[-1]]["learning_rate"] for part in parts],
    }


def finish(run: Run, faces: Path, runs: Path, results: Path) -> None:
    """Train, test and write the run's JSON file."""
    from recognition.logs import read_metrics

    cost = train(run, faces, runs)
    figures, right = test(run, faces, runs)
    lines = [line for line in read_metrics(runs / run.name) if "loss" in line]
    last = lines[-max(1, len(lines) // 20) :]
    total = steps(run.data, run.epochs)
    record: dict[str, Any] = {
        "part": run.part,
        "row": run.row,
        "seed": run.seed,
        "overrides": list(run.overrides),
        "epochs": run.epochs,
        "steps": total,
        "images": total * BATCH,
        "wall_seconds": round(lines[-1]["seconds"], 1),
        **cost,
        "final_loss": statistics.fmean(line["loss"] for line in last),
        "final_learning_rate": last[-1]["learning_rate"],
        "decays": last[-1].get("schedule/decays"),
        **{key: round(value, 4) for key, value in figures.items()},
        "pairs": len(right),
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "curve": loss_curve(runs / run.name),
    }
    results.mkdir(parents=True, exist_ok=True)
    with atomic_write(results / f"{run.name}.json", "w") as file:
        json.dump(record, file)
    print(
        f"{run.name}: {figures['accuracy']:.2f} %, final loss {record['final_loss']:.3f}",
        flush=True,
    )


def work(chosen: Sequence[Run], faces: Path, runs: Path, results: Path) -> None:
    """Do the runs that are neither finished nor held by another process."""
    runs.mkdir(parents=True, exist_ok=True)
    for run in chosen:
        with open(runs / f"{run.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not (results / f"{run.name}.json").exists():
                finish(run, faces, runs, results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faces", type=Path)
    parser.add_argument("--parts", nargs="+", default=["a", "b", "c", "doubled", "sensitivity"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="runs by name")
    parser.add_argument("--runs", type=Path, default=Path("runs/quarter_time"), help="run folders")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results/quarter_time"), help="finished runs"
    )
    parser.add_argument(
        "--list", action="store_true", help="print every run and its overrides, and stop"
    )
    args = parser.parse_args()
    chosen = [
        run
        for run in all_runs()
        if (run.name in args.only if args.only else run.part in args.parts)
    ]
    if not chosen:
        parser.error(f"no such run: {args.only or args.parts}; see --list")
    if args.list:
        for run in chosen:
            done = "done" if (args.results / f"{run.name}.json").exists() else ""
            print(
                f"{run.name:<32}{run.epochs:>4} epochs{steps(run.data, run.epochs):>8} steps  {done:<6}",
                end="",
            )
            print(" ".join(f"'{override}'" for override in run.overrides))
        return
    torch.set_num_threads(1)
    work(chosen, args.faces, args.runs, args.results)


if __name__ == "__main__":
    main()
