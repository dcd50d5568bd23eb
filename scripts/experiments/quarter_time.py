"""Trains the runs that ask: does FastFace reach a converged baseline in a quarter of the time?

    python -m scripts.experiments.quarter_time FACES

FACES holds train.rec, lfw_112.zip and protocol/ (LFW's lists). All runs train on train.rec; its
people are not in LFW. A row of the table is a schedule, and the stages of every row are:

    tune    one run with seed 0 per peak learning rate of the same small grid. The best on the 3,200
            pairs of View 1 is chosen. If it is at an end of the grid, one more rate is tried there.
    test    four more seeds with the chosen rate. The figures are those on the 6,000 pairs of LFW.

The baseline and the doubled baseline have four and eight times the epochs of the other rows. The
doubled baseline has the baseline's rate and three seeds. No other constant is tuned for any row.

Every run is train.py with configs/quarter_time.yaml and the overrides that --list prints. A
finished run is one JSON file in --results and is not run again. An unfinished run continues from
its checkpoint. Several of these commands may run at the same time: each chooses runs that no other
one holds. `python -m scripts.experiments.quarter_report` makes the tables and figures.
"""

import fcntl
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import recognition
from data.files import atomic_write
from data.images import open_images
from data.pairs.lists import index_names, read_pair_list
from data.parts import hint
from data.size_schedule import SizeSchedule
from data.steps import Steps
from eval.embed import embed_faces
from recognition.parse import load_config
from scripts._curves import run_curve, thinned, training_lines
from scripts.experiments._judge import judge
from scripts.experiments._train import run_training
from scripts.experiments.view1_faces import alternating
from tools._backbone import trace
from tools._cli import command

CONFIG = "configs/quarter_time.yaml"
IMAGES, BATCH = 5_998, 16
EPOCHS = 12  # of a row at a quarter of the baseline's images
LENGTHS = {"baseline": 4 * EPOCHS, "doubled": 8 * EPOCHS}
SEEDS = {"doubled": 3}  # of the test stage; other rows have five
RATES = (0.05, 0.1, 0.025)  # peak learning rates, in the order in which they are tried
FALL = 10.0  # about how much the loss falls over a run, for the thresholds λ
WARMUP = 100  # steps
PUBLISHED_WINDOW = 4000 / 202_325  # Moving Haar's, as a share of the published run
KEPT = ("accuracy", "accuracy_std", "exact_accuracy", "tar@0.01", "auc")
POINTS = 100  # kept of a loss curve

Record = Mapping[str, Any]
"""A finished run, as its JSON file holds it."""


@dataclass(frozen=True)
class Run:
    """One training. rate: peak learning rate. overrides: of the config, besides these fields."""

    row: str
    rate: float
    seed: int
    epochs: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.row}_{self.rate:g}_{self.seed}"


def steps(epochs: int) -> int:
    """Optimizer steps of a run: incomplete batches are dropped."""
    return IMAGES // BATCH * epochs


def schedule(name: str, **options: object) -> str:
    """The override for a schedule."""
    given = "".join(f", {key}: {value}" for key, value in options.items())
    return f"scheduler={{name: {name}{given}, warmup_steps: {WARMUP}}}"


def multi_step(epochs: int) -> str:
    """The baseline's schedule: ×0.1 after a half, three quarters and nine tenths of the run."""
    return schedule("multi_step", milestones=[epochs * part for part in (0.5, 0.75, 0.9)])


def schedules() -> dict[str, str]:
    """Row -> override of its schedule, the rows that matter most first.

    λ of FastFace is a quarter of the expected fall of the loss, divided by the length of the run.
    In the published run it was the same: λT = 10, and the loss fell by 40. Moving Haar has the
    window of the published run as a share of the run, and its λ makes a steady fall stationary at
    the same slope as FastFace's. `fastface_published` has the published constants unchanged.
    """
    slope = FALL / 4 / steps(EPOCHS)
    window = round(PUBLISHED_WINDOW * steps(EPOCHS))
    haar = schedule("moving_haar", window=window, threshold=f"{slope * window / 4:.6f}")
    return {
        "fastface": schedule("fastface", for_horizon="true", threshold=f"{slope:.3e}"),
        "linear": schedule("polynomial", power=1),
        "cosine": schedule("cosine"),
        "baseline": multi_step(LENGTHS["baseline"]),
        "moving_haar": haar,
        "trapezoid": schedule("trapezoid"),
        "multi_step": multi_step(EPOCHS),
        "polynomial": schedule("polynomial", power=2),
        "constant": schedule("constant"),
        "fastface_published": schedule("fastface"),
        "doubled": multi_step(LENGTHS["doubled"]),
    }


def run_of(row: str, rate: float, seed: int) -> Run:
    """The run of a row."""
    return Run(row, rate, seed, LENGTHS.get(row, EPOCHS), (schedules()[row],))


def tuning_rates(tuned: Mapping[float, float]) -> tuple[float, ...]:
    """Peak rates to try, where `tuned` has the accuracy on View 1 of those that were tried.

    Once the whole grid was tried and its best rate is its highest or lowest, one more follows.
    """
    if not set(RATES) <= tuned.keys():
        return RATES
    best = max(RATES, key=tuned.__getitem__)
    further = {max(RATES): 2 * best, min(RATES): best / 2}
    return (*RATES, further[best]) if best in further else RATES


def chosen_rate(tuned: Mapping[float, float]) -> float | None:
    """The rate with the highest accuracy on View 1; None as long as some rate was not tried."""
    rates = tuning_rates(tuned)
    return max(rates, key=tuned.__getitem__) if set(rates) <= tuned.keys() else None


def tuned_rates(finished: Sequence[Record], row: str) -> dict[float, float]:
    """Peak rate -> accuracy on View 1 of the finished runs of a row's tune stage."""
    return {
        run["rate"]: run["view1"]["accuracy"]
        for run in finished
        if run["row"] == row and run["seed"] == 0
    }


def known_runs(finished: Sequence[Record]) -> Iterator[Run]:
    """Every run that can be named by now: the tune stage by rates, then the test stage by seeds."""
    tuned = {row: tuned_rates(finished, row) for row in schedules() if row != "doubled"}
    rates = {row: tuning_rates(tuned[row]) for row in tuned}
    for place in range(len(RATES) + 1):
        yield from (run_of(row, own[place], 0) for row, own in rates.items() if place < len(own))
    chosen = {row: chosen_rate(own) for row, own in tuned.items()}
    chosen["doubled"] = chosen["baseline"]
    for seed in range(5):
        for row, rate in chosen.items():
            first = 0 if row == "doubled" else 1  # seed 0 was the tune stage's
            if rate is not None and first <= seed < SEEDS.get(row, 5):
                yield run_of(row, rate, seed)


def read_records(results: Path) -> list[Record]:
    """The finished runs."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


def train(run: Run, faces: Path, runs: Path) -> dict[str, Any]:
    """Run or continue train.py, and return what it cost.

    The keys are those of `cost`, and: cpu_seconds of the whole command with its start and
    compilation, and whether an earlier call had begun the run, whose time is then missing there.
    """
    folder = runs / run.name
    options = [
        *(f"data.root={faces}", f"run.seed={run.seed}", "evaluate.sets=[]"),
        *(f"optim.epochs={run.epochs}", f"optim.lr={run.rate:g}", *run.overrides),
    ]
    resumed = (folder / "metrics.jsonl").exists()
    seconds = run_training(CONFIG, options, folder)
    return {**cost(run, folder), "cpu_seconds": round(seconds, 1), "resumed": resumed}


def cost(run: Run, folder: Path) -> dict[str, Any]:
    """Steps, images, multiply-adds of all forward passes, and seconds of a run folder.

    steady_cpu_seconds: the run's steps, each with the median CPU time of the steps with images of
    its size. It has no start and no compilation, and other programs on the machine change it
    little.
    """
    config = load_config(CONFIG, [f"optim.epochs={run.epochs}", *run.overrides])
    batch, lines = config.optim.batch_size, training_lines(folder)
    planned = Steps(batch, batch, IMAGES // batch * batch)
    sizes = SizeSchedule(config.data.size, config.data.size_schedule or {}, run.epochs)
    counts: dict[int, int] = defaultdict(int)
    seconds: dict[int, list[float]] = defaultdict(list)
    begin = 0
    for line in lines:
        size, count = sizes.at(line["images"] - batch, planned), line["step"] - begin
        counts[size] += count
        seconds[size].append(line["cpu_seconds"] / count)
        begin = line["step"]
    steady = sum(statistics.median(seconds[size]) * count for size, count in counts.items())
    # Two images, since batch norm refuses to train on one.
    traced = {
        size: trace(config.backbone, 2, size, config.run.precision).multiply_adds / 2
        for size in counts
    }
    last = lines[-1]
    return {
        "steps": last["step"],
        "images": last["images"],
        "multiply_adds": round(sum(count * batch * traced[size] for size, count in counts.items())),
        "steady_cpu_seconds": round(steady, 1),
        "wall_seconds": round(last["seconds"], 1),
    }


def test(run: Run, faces: Path, runs: Path) -> dict[str, dict[str, Any]]:
    """Figures of the trained model on both lists of pairs, `view1` and `lfw`.

    `right` says in base 64 which pairs were judged correctly, at the thresholds of ten folds.
    """
    view1 = runs / "view1_pairs.txt"
    with atomic_write(view1, "w") as file:
        file.write(view1_pairs(faces))
    lists = {"view1": view1, "lfw": faces / "protocol/pairs.txt"}
    read = {name: read_pair_list(path) for name, path in lists.items()}
    names, first, second = index_names([pair for listed, _ in read.values() for pair in listed])
    model = recognition.load(runs / run.name, device="cpu")
    images = open_images(faces / "lfw_112.zip", names)
    embeddings = embed_faces(model, images, model.size)
    figures, start = {}, 0
    for name, (_, same) in read.items():
        here = slice(start, start + len(same))
        start = here.stop
        figures[name] = judge(name, embeddings, first[here], second[here], same, KEPT)
    return figures


def view1_pairs(faces: Path) -> str:
    """Both lists of LFW's View 1 as one, of 3,200 pairs. Every tenth of it has both kinds."""
    counts, lines = [], []
    for name in ("pairsDevTrain", "pairsDevTest"):
        count, *pairs = alternating(faces / f"protocol/{name}.txt").splitlines()
        counts.append(int(count))
        lines += pairs
    return "\n".join([str(sum(counts)), *lines]) + "\n"


def loss_curve(folder: Path) -> dict[str, list[float]]:
    """Steps, losses and learning rates of a run, averaged down to at most POINTS points."""
    curve = thinned(run_curve(folder), POINTS)
    assert curve.lrs is not None
    return {
        "step": curve.steps.tolist(),
        "loss": curve.losses.round(3).tolist(),
        "learning_rate": [float(f"{rate:.4g}") for rate in curve.lrs],
    }


def finish(run: Run, faces: Path, runs: Path, results: Path) -> None:
    """Train, test and write the run's JSON file."""
    spent = train(run, faces, runs)
    lines = training_lines(runs / run.name)
    last = lines[-max(1, len(lines) // 20) :]
    record = {
        "row": run.row,
        "rate": run.rate,
        "seed": run.seed,
        "overrides": list(run.overrides),
        "epochs": run.epochs,
        **spent,
        "final_loss": round(statistics.fmean(line["loss"] for line in last), 4),
        "decays": last[-1].get("schedule/decays"),
        **test(run, faces, runs),
        "curve": loss_curve(runs / run.name),
    }
    results.mkdir(parents=True, exist_ok=True)
    with atomic_write(results / f"{run.name}.json", "w") as file:
        json.dump(record, file)
    shown = ", ".join(f"{name} {record[name]['accuracy']:.2f} %" for name in ("view1", "lfw"))
    print(f"{run.name}: {shown}, final loss {record['final_loss']:.3f}", flush=True)


def work(chosen: Sequence[Run], faces: Path, runs: Path, results: Path) -> bool:
    """Do the first of those runs that is not finished and that no other process holds.

    Returns whether there was one.
    """
    runs.mkdir(parents=True, exist_ok=True)
    for run in chosen:
        with open(runs / f"{run.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not (results / f"{run.name}.json").exists():
                finish(run, faces, runs, results)
                return True
    return False


def show_runs(chosen: Sequence[Run], results: Path) -> None:
    """Print each run: its length, whether it is done, and its overrides."""
    for run in chosen:
        done = "done" if (results / f"{run.name}.json").exists() else ""
        overrides = " ".join(f"'{override}'" for override in run.overrides)
        print(f"{run.name:<32}{run.epochs:>4} epochs  {done:<6}optim.lr={run.rate:g} {overrides}")


def run_experiment(
    faces: Path,
    *,
    only: tuple[str, ...] = (),
    runs: Path = Path("runs/quarter_time"),
    results: Path = Path("docs/results/quarter_time"),
    list: bool = False,
) -> None:
    """Do all runs. The runs of the test stage are known when those of the tune stage are finished.

    faces: folder of the sets and lists.
    only: names of rows, instead of all.
    runs: folder for run folders.
    results: folder for finished runs.
    list: print the runs that are known and their overrides, and stop.
    """
    rows = schedules()
    for name in only:
        if name not in rows:
            raise ValueError(f"--only {name}: no such row; {hint(name, rows)}")
    torch.set_num_threads(1)
    while True:
        known = known_runs(read_records(results))
        chosen = [run for run in known if not only or run.row in only]
        if list:
            show_runs(chosen, results)
        if list or not work(chosen, faces, runs, results):
            return


main = command(run_experiment)
