"""Interrupts small seeded runs, and continues them: as before, or on other processes.

    python -m scripts.soak.resume --folder FOLDER

Kills: a run is killed with signal 9 at a random moment and resumed. All tensors of its last
checkpoint, its losses and its learning rates must equal those of the run that was left alone.

Changes: a run goes on from a random checkpoint with another number of processes, batch size or
accumulation. Every planned image of an epoch must be seen once, but for a rest that fills no step
where the steps have another size. The learning rate at each image must be that of the planned run,
or for FastFace and Moving Haar what the bare scheduler makes of the losses. The run must end with
its last image and an evaluation. With a schedule by step, the accuracy must lie within three
standard deviations of runs that have other seeds and were not interrupted.

FOLDER/rows.jsonl keeps the finished rows, and a second start goes on after them. Exit code 1: a row
is not as it must be.
"""

import json
import math
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.options import CountOrZero
from data.order import shuffled
from recognition import checkpoint
from recognition.logs import read_metrics
from recognition.parse import build_part, load_config
from scripts._tables import show_table
from scripts.soak.final_bits import final_hash
from tools._cli import Failed, command

Row = dict[str, Any]
CONFIG = "configs/quickstart.yaml"
COMMON = (
    *("run.compile=false", "run.device=cpu", "run.precision=fp32", "run.channels_last=false"),
    *("data.size=32", "data.threads=1", "run.log_steps=1", "scheduler.warmup_steps=2"),
)
TINY = (
    *COMMON,
    *("data.train=synthetic:identities=12,images=8", "backbone.width=4", "backbone.embedding=16"),
    *("optim.batch_size=12", "optim.epochs=3", "run.checkpoint_steps=2", "evaluate.sets=[]"),
)
KILLED: dict[str, tuple[int, Sequence[str]]] = {
    "plain": (1, []),
    "accumulation": (1, ["optim.accumulation=2"]),
    "fp16": (1, ["run.precision=fp16"]),
    "full fused": (1, ["classifier={name: full, fused: true}"]),
    "partial, AdamW": (
        1,
        ["classifier={name: partial, sample_rate: 0.7}", "optim.name=adamw", "optim.lr=0.001"],
    ),
    "class pool": (1, ["classifier={name: class_pool, size: 12}"]),
    "two ranks": (2, ["optim.batch_size=6"]),
}

PEOPLE, PHOTOS, EPOCHS, PLANNED = 50, 10, 12, 96  # PLANNED: images per step
EPOCH = PEOPLE * PHOTOS // PLANNED * PLANNED
HELDOUT = "{name: heldout, faces: 'synthetic:identities=40,images=6,first=100000', count: 400}"
LONGER = (
    *COMMON,
    *(f"data.train=synthetic:identities={PEOPLE},images={PHOTOS}", f"optim.epochs={EPOCHS}"),
    *("backbone.width=8", "backbone.embedding=32", "run.checkpoint_steps=5", "run.keep=100"),
    *(f"evaluate.sets=[{HELDOUT}]", "evaluate.every_epochs=0"),
)
BY_STEP = "polynomial"
SCHEDULES = {
    BY_STEP: "scheduler={name: polynomial, warmup_steps: 5}",
    "fastface": "scheduler={name: fastface, alpha: 0.3, beta: 0.3, threshold: 0.3, "
    "patience_fraction: 0.05, warmup_steps: 5}",
    "moving_haar": "scheduler={name: moving_haar, window: 6, threshold: 0.5, patience_steps: 3, "
    "warmup_steps: 5}",
}
KEEP, SCALE = "optim.changed_batch=keep_rate", "optim.changed_batch=scale_rate"
# Processes before and after, images per step after, and overrides of the resume.
CHANGED: dict[str, tuple[int, int, int, Sequence[str]]] = {
    "1 to 2 processes": (1, 2, PLANNED, []),
    "2 to 1 process": (2, 1, PLANNED, []),
    "3 to 2 processes": (3, 2, PLANNED, []),
    "8 to 6 processes": (8, 6, PLANNED, []),
    "a third of the batch": (1, 1, PLANNED, ["optim.batch_size=32"]),
    "accumulation of 4": (2, 2, PLANNED, ["optim.batch_size=12", "optim.accumulation=4"]),
    "3 to 2 processes, rate kept": (3, 2, 64, [KEEP]),
    "2 to 3 processes, rate scaled": (2, 3, 144, [SCALE]),
}
SEEDS = range(1, 5)


def run(
    *, folder: Path, kills: CountOrZero = 100, changes: bool = True, seed: CountOrZero = 0
) -> Row:
    """Make the rows that FOLDER does not have yet, and show all.

    folder: where runs and rows are kept.
    kills: number of kills, divided among the kinds of runs.
    changes: also continue runs on other processes.
    seed: seed of the moments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = list(KILLED)
    wanted = {f"kill {place}": kinds[place % len(kinds)] for place in range(kills)}
    if changes:
        wanted |= {f"{case}, {name}": case for name in SCHEDULES for case in CHANGED}
    rows = {row["name"]: row for row in _lines(folder / "rows.jsonl")}
    for name, kind in wanted.items():
        if name in rows:
            continue
        draw = random.Random(f"{seed} {name}")
        if kind in KILLED:
            row = killed(folder, kind, draw)
        else:
            row = changed(folder, kind, name.removeprefix(f"{kind}, "), draw)
        rows[name] = {"name": name, "kind": kind, **row}
        print(rows[name], flush=True)
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(rows[name]) + "\n")
    return _summary([rows[name] for name in wanted])


def _summary(rows: list[Row]) -> Row:
    of_kind: dict[str, list[Row]] = {}
    for row in rows:
        of_kind.setdefault(row["kind"], []).append(row)
    shown = [
        {"kind": kind, "rows": len(some), "as they must be": sum(row["good"] for row in some)}
        for kind, some in of_kind.items()
    ]
    record = {"rows": list(show_table(shown))}
    if not all(row["good"] for row in rows):
        raise Failed(
            f"{sum(not row['good'] for row in rows)} of {len(rows)} rows are wrong", record
        )
    return record


def killed(folder: Path, kind: str, draw: random.Random) -> Row:
    """Kill a run of that kind at a random moment, resume it, and compare it with the whole one."""
    world, overrides = KILLED[kind]
    given, whole, again = [*TINY, *overrides], folder / kind, folder / "killed"
    took = folder / f"{kind}.seconds"
    if not took.exists():
        shutil.rmtree(whole, ignore_errors=True)
        took.write_text(str(_Run(whole, world, given).finish()))
    while True:
        shutil.rmtree(again, ignore_errors=True)
        moment = draw.uniform(0, float(took.read_text()))
        if _Run(again, world, given).kill(moment):
            break
    lines, saved = read_metrics(again), checkpoint.newest(again / "checkpoints")
    _Run(again, world, [*given, "--resume"]).finish()
    return {
        "killed after": round(moment, 2),
        "step": lines[-1]["step"] if lines else 0,
        "saved": saved and saved.name,
        "good": final_hash(again) == final_hash(whole) and _course(again) == _course(whole),
    }


def changed(folder: Path, case: str, schedule: str, draw: random.Random) -> Row:
    """Resume a run otherwise from a random checkpoint, and check what it did until its end."""
    before, after, size, overrides = CHANGED[case]
    given = [*LONGER, SCHEDULES[schedule], f"optim.batch_size={PLANNED // before}"]
    whole, again = _whole(folder, f"{schedule} on {before}", before, given), folder / "changed"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(whole, again)

    # The run stands at one of its checkpoints, as if it had been stopped there.
    saved = sorted((again / "checkpoints").iterdir())
    chosen = draw.randrange(len(saved) - 1)
    for path in saved[chosen + 1 :]:
        shutil.rmtree(path)
    position = checkpoint.load(saved[chosen])[0]["loader"]
    place = position["epoch"] * EPOCH + position["consumed"]
    for path in (again / "seen").iterdir():
        kept = [note for note in _lines(path) if note["place"] < place]
        path.write_text("".join(json.dumps(note) + "\n" for note in kept))
    _Run(again, after, [*given, *overrides, "--resume"], noted=True).finish()

    *_, last_step, evaluation = read_metrics(again)
    accuracy = evaluation.get("heldout/accuracy", math.nan)
    found: Row = {"accuracy": accuracy, "uninterrupted": _accuracy(whole)}
    checks = {
        "images": _seen(again) == _to_be_seen(place, size),
        "rates": _rates_are_right(again, whole, place, size, given),
        "end": last_step["images"] == EPOCHS * EPOCH and math.isfinite(accuracy),
    }
    if schedule == BY_STEP:
        seeds = [
            _whole(folder, f"seed {seed} on {before}", before, [*given, f"run.seed={seed}"])
            for seed in SEEDS
        ]
        accuracies = [_accuracy(run) for run in [whole, *seeds]]
        center, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        found |= {"of seeds": round(center, 2), "deviation": round(deviation, 2)}
        checks["accuracy is right"] = abs(accuracy - center) <= 3 * deviation
    return {"from image": place, **found, **checks, "good": all(checks.values())}


def _seen(folder: Path) -> list[list[int]]:
    """The images of each epoch, sorted."""
    seen: list[list[int]] = [[] for _ in range(EPOCHS)]
    for path in (folder / "seen").iterdir():
        for note in _lines(path):
            seen[note["place"] // EPOCH] += note["images"]
    return [sorted(images) for images in seen]


def _to_be_seen(place: int, size: int) -> list[list[int]]:
    """Of each epoch the planned images, without a rest that fills no step of `size` images."""
    expected = []
    for epoch in range(EPOCHS):
        begin = min(max(place - epoch * EPOCH, 0), EPOCH)  # where the resumed run begins
        end = EPOCH - (EPOCH - begin) % size
        expected.append(sorted(shuffled(PEOPLE * PHOTOS, seed=0, epoch=epoch)[:end].tolist()))
    return expected


def _rates_are_right(again: Path, whole: Path, place: int, size: int, given: Sequence[str]) -> bool:
    """Whether each learning rate after a resume is what the planned run has at this image.

    A schedule that reads the loss is compared with the bare scheduler, which gets the mean loss of
    the images of each planned step.
    """
    # The loss of each image; those that a resume leaves out have none.
    losses: dict[int, float] = {}
    before = 0
    course = [line for line in read_metrics(again) if "loss" in line]
    for line in course:
        if before == place and EPOCH - place % EPOCH < size:
            before += EPOCH - place % EPOCH
        losses |= dict.fromkeys(range(before, line["images"]), line["loss"])
        before = line["images"]

    config = load_config(CONFIG, given)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
    per_epoch = EPOCH // PLANNED
    bare = build_part(
        "recognition.schedulers",
        config.scheduler,
        optimizer=optimizer,
        total_steps=per_epoch * EPOCHS,
        steps_per_epoch=per_epoch,
    )
    rates = []
    for step in range(per_epoch * EPOCHS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        images = range(step * PLANNED, (step + 1) * PLANNED)
        known = [losses[image] for image in images if image in losses]
        optimizer.step()
        loss = sum(known) / len(known) if known else None
        bare.step(loss) if hasattr(bare, "reads_loss") else bare.step()
    if not hasattr(bare, "reads_loss"):
        planned = {line["images"]: line["learning_rate"] for line in read_metrics(whole)[:-1]}
        assert all(rates[at // PLANNED] == rate for at, rate in planned.items())

    scaled = load_config(again / "config.yaml").optim.changed_batch == "scale_rate"
    share = size / PLANNED if scaled else 1.0
    return all(
        math.isclose(line["learning_rate"], rates[line["images"] // PLANNED] * share)
        for line in course
        if line["images"] > place
    )


def _accuracy(folder: Path) -> float:
    return float(read_metrics(folder)[-1]["heldout/accuracy"])


def _whole(folder: Path, name: str, world: int, given: Sequence[str]) -> Path:
    """The folder of an uninterrupted run, which is made once."""
    if not (folder / name).exists():
        making = folder / "making"
        shutil.rmtree(making, ignore_errors=True)
        _Run(making, world, given, noted=True).finish()
        making.rename(folder / name)
    return folder / name


def _course(folder: Path) -> list[tuple[float, ...]]:
    keys = ("step", "images", "loss", "learning_rate")
    return [tuple(line[key] for key in keys) for line in read_metrics(folder) if "loss" in line]


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class _Run:
    """The processes of a run with this folder, from the first line of their output on."""

    def __init__(
        self, folder: Path, world: int, arguments: Sequence[str], *, noted: bool = False
    ) -> None:
        self._log = folder.with_name(f"{folder.name}.log")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        program = ["-m", "scripts.soak._seen"] if noted else ["train.py"]
        whole = [sys.executable, "-u", *program, "--config", CONFIG, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if noted:
            (folder / "seen").mkdir(parents=True, exist_ok=True)
            environment["SEEN"] = str(folder / "seen")
        with self._log.open("w") as log:
            self._processes = [
                subprocess.Popen(
                    [*whole, f"run.output={folder}"],
                    env={**environment, "RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
                for rank in range(world)
            ]
        while not self._log.stat().st_size and self._running():
            time.sleep(0.01)
        self._began = time.perf_counter()

    def _running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def finish(self) -> float:
        """Wait for the end, and return the seconds since the first line of output."""
        codes = [process.wait() for process in self._processes]
        if any(codes):
            raise RuntimeError(f"exit codes {codes}: {self._log.read_text()[-2000:]}")
        return time.perf_counter() - self._began

    def kill(self, seconds: float) -> bool:
        """Kill all processes that many seconds after the first line; whether any was running."""
        time.sleep(seconds)
        running = self._running()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        return running


main = command(run)
