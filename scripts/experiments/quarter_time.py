"""Trains the runs that ask: does FastFace reach a converged baseline in a quarter of the time?

    python -m scripts.experiments.quarter_time FACES

FACES holds train.rec, lfw_112.zip and protocol/ (LFW's lists). The parts are:

    a            trains on train.rec and tests on the 6,000 LFW pairs
    b            adds the people of LFW's View 1 training list and tests on pairsDevTest
    c            is part a with the doubled baseline as its baseline
    doubled      gives the baselines twice the epochs, which shows whether they had converged; the
                 one on part a's data also four times the epochs
    tune         chose the base learning rate on pairsDevTrain
    sensitivity  varies the constants of FastFace on part a's data

Every run is train.py with configs/quarter_time.yaml and the overrides that --list prints. A
finished run is one JSON file in --results and is not run again. An unfinished run continues from
its checkpoint. Several of these commands may run at the same time: each chooses runs that no other
one holds. `python -m scripts.experiments.quarter_report` makes the tables and figures.
"""

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
from typing import Any, Literal

import numpy as np
import torch

import recognition
from data.files import atomic_write
from data.pairs.lists import from_list
from data.parts import hint
from eval.benchmarks.pairs import score_pairs
from eval.embed import embed_faces
from eval.metrics import verification as metrics
from scripts._curves import run_curve, thinned, training_lines
from scripts.experiments.view1_faces import alternating, write_view1
from tools._cli import Failed, command

Part = Literal["a", "b", "c", "doubled", "tune", "sensitivity"]
CONFIG = "configs/quarter_time.yaml"
IMAGES = {"train": 5_998, "view1": 15_523}
BATCH = 16
EPOCHS = {"train": 24, "view1": 8}  # of a baseline
TUNE_EPOCHS = 16
FALL = {"train": 10.0, "view1": 12.0}  # about how much the loss falls over a run, for λ
POINTS = 200  # kept of a loss curve


@dataclass(frozen=True)
class Run:
    """One training."""

    part: str  # of the experiment
    row: str  # of the part's table
    seed: int
    data: str  # a key of IMAGES
    epochs: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.part}_{self.row}_{self.seed}"


def steps(data: str, epochs: int) -> int:
    """Optimizer steps of a run: incomplete batches are dropped."""
    return IMAGES[data] // BATCH * epochs


def schedule(name: str, **options: object) -> str:
    """The override for a schedule with a warm-up of 100 steps."""
    given = "".join(f", {key}: {value}" for key, value in options.items())
    return f"scheduler={{name: {name}{given}, warmup_steps: 100}}"


def multi_step(epochs: int) -> str:
    """The baseline's schedule: ×0.1 after a half, three quarters and nine tenths of the run."""
    return schedule("multi_step", milestones=[epochs * part for part in (0.5, 0.75, 0.9)])


def moving_haar(data: str, total: int, window: float) -> str:
    """Moving Haar with a window of that fraction of the run.

    Its λ makes a steady fall count as stationary at the same slope as FastFace's λ of this run.
    """
    m = round(window * total)
    return schedule("moving_haar", window=m, threshold=f"{FALL[data] / 4 / total * m / 4:.6f}")


def schedules(data: str, epochs: int) -> dict[str, str]:
    """Row -> override of every schedule that is compared at a quarter of the baseline's images.

    λ of FastFace is a quarter of the expected fall of the loss, divided by the length of the run.
    In the published run it was the same: λT = 10, and the loss fell by 40. `fastface_published` has
    the published constants unchanged.
    """
    total = steps(data, epochs)
    threshold = f"{FALL[data] / 4 / total:.3e}"
    published_window = 4000 / 202_325  # as a fraction of the published run
    return {
        "fastface": schedule("fastface", for_horizon="true", threshold=threshold),
        "cosine": schedule("cosine"),
        "multi_step": multi_step(epochs),
        "polynomial": schedule("polynomial"),
        "constant": schedule("constant"),
        "moving_haar": moving_haar(data, total, published_window),
        "moving_haar_wide": moving_haar(data, total, 0.1),
        "fastface_published": schedule("fastface"),
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

    The usual αT is 20, a tenth of the published one. With more, the noise of such a short run hides
    that the loss is stationary.
    """
    epochs = EPOCHS["train"] // 4
    total = steps("train", epochs)
    usual = {"tau": 0.05, "lambda": FALL["train"] / 4, "alpha": 20.0, "delta": 2.0}
    changed = {"lambda": (1.0, 6.0), "alpha": (10.0, 60.0), "tau": (0.02, 0.1), "delta": (1.5, 4.0)}
    cases = {"usual": usual}
    for key, values in changed.items():
        cases |= {f"{key}{value:g}": {**usual, key: value} for value in values}
    runs = []
    for row, case in cases.items():
        alpha = f"{case['alpha'] / total:.5f}"
        override = schedule(
            "fastface",
            alpha=alpha,
            beta=alpha,
            threshold=f"{case['lambda'] / total:.3e}",
            patience_fraction=case["tau"],
            factor=f"{1 / case['delta']:.4f}",
        )
        runs.append(Run("sensitivity", row, 0, "train", epochs, (override,)))
    return runs


def train(run: Run, faces: Path, runs: Path) -> dict[str, float]:
    """Run or continue train.py.

    Returns the CPU seconds of this call, and whether an earlier call had begun the run.
    """
    folder = runs / run.name
    source = f"data.root={faces}"
    if run.data == "view1":
        source = f"data.train={view1(faces, runs) / 'train.rec'}"
    command = [
        *(sys.executable, "train.py", "--config", CONFIG, "--resume", source),
        *(f"run.output={folder}", f"run.seed={run.seed}", "evaluate.sets=[]"),
        *(f"optim.epochs={run.epochs}", *run.overrides),
    ]
    resumed = (folder / "metrics.jsonl").exists()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = runs / f"{run.name}.log"
    with open(path, "a") as log:
        done = subprocess.run(command, check=False, stdout=log, stderr=log, env=environment)
    if done.returncode:
        raise Failed(f"{run.name}: train.py ended with code {done.returncode}; see {path}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": round(seconds, 1), "resumed": resumed}


def view1(faces: Path, runs: Path) -> Path:
    """The folder of View 1's record file and test pairs. The first call makes it."""
    out = runs / "view1"
    if not (out / "pairs.txt").exists():
        write_view1(faces, out)
    return out


def test(run: Run, faces: Path, runs: Path) -> tuple[dict[str, float], np.ndarray]:
    """Figures of the trained model on the run's test pairs, and the correct pairs, bool (P,)."""
    pairs_file = faces / "protocol/pairs.txt"
    if run.data == "view1":
        pairs_file = view1(faces, runs) / "pairs.txt"
    elif run.part == "tune":
        pairs_file = runs / "tune_pairs.txt"
        with atomic_write(pairs_file, "w") as file:
            file.write(alternating(faces / "protocol/pairsDevTrain.txt"))
    pairs = from_list(pairs_file, faces / "lfw_112.zip")
    model = recognition.load(runs / run.name, device="cpu")
    embeddings = embed_faces(model, pairs.images, model.size)
    found = score_pairs(run.name, embeddings, pairs.first, pairs.second, pairs.same).metrics
    kept = ("accuracy", "accuracy_std", "exact_accuracy", "tar@0.01", "auc")
    distances = metrics.pair_distances(embeddings, pairs.first, pairs.second)
    thresholds = metrics.grid_accuracy(distances, pairs.same).thresholds
    right = (distances < thresholds[metrics.fold_of(len(distances))]) == pairs.same
    return {key: found[key] for key in kept}, right


def loss_curve(folder: Path) -> dict[str, list[float]]:
    """Steps, losses and learning rates of a run, averaged down to at most POINTS points."""
    curve = thinned(run_curve(folder), POINTS)
    assert curve.lrs is not None
    return {
        "step": curve.steps.tolist(),
        "loss": curve.losses.round(4).tolist(),
        "learning_rate": curve.lrs.tolist(),
    }


def finish(run: Run, faces: Path, runs: Path, results: Path) -> None:
    """Train, test and write the run's JSON file."""
    cost = train(run, faces, runs)
    figures, right = test(run, faces, runs)
    lines = training_lines(runs / run.name)
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
    shown = f"{figures['accuracy']:.2f} %, final loss {record['final_loss']:.3f}"
    print(f"{run.name}: {shown}", flush=True)


def work(chosen: Sequence[Run], faces: Path, runs: Path, results: Path) -> None:
    """Do those runs that are not finished and that no other process holds."""
    runs.mkdir(parents=True, exist_ok=True)
    for run in chosen:
        with open(runs / f"{run.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not (results / f"{run.name}.json").exists():
                finish(run, faces, runs, results)


def show_runs(chosen: Sequence[Run], results: Path) -> None:
    """Print each run: its length, whether it is done, and its overrides."""
    for run in chosen:
        done = "done" if (results / f"{run.name}.json").exists() else ""
        length = f"{run.epochs:>4} epochs{steps(run.data, run.epochs):>8} steps"
        overrides = " ".join(f"'{override}'" for override in run.overrides)
        print(f"{run.name:<32}{length}  {done:<6}{overrides}")


def run_experiment(
    faces: Path,
    *,
    parts: tuple[Part, ...] = ("a", "b", "c", "doubled", "sensitivity"),
    only: tuple[str, ...] = (),
    runs: Path = Path("runs/quarter_time"),
    results: Path = Path("docs/results/quarter_time"),
    list: bool = False,
) -> None:
    """Do the runs of the chosen parts.

    faces: folder of the sets and lists.
    parts: parts of the experiment.
    only: names of single runs, instead of parts.
    runs: folder for run folders.
    results: folder for finished runs.
    list: print the runs and their overrides, and stop.
    """
    known = {run.name: run for run in all_runs()}
    for name in only:
        if name not in known:
            raise ValueError(f"--only {name}: no such run; {hint(name, known)}")
    chosen = [run for run in known.values() if (run.name in only if only else run.part in parts)]
    if list:
        show_runs(chosen, results)
    else:
        torch.set_num_threads(1)
        work(chosen, faces, runs, results)


main = command(run_experiment)
