"""Trains the runs that ask which classifier suits a set with few photos of each person.

    python -m scripts.experiments.shallow FACES

FACES holds train.rec, lfw_112.zip and protocol/ (LFW's lists). There are two training sets, each
cut to a number of photos per person, which the seed draws:

    view1   the people of LFW's peopleDevTrain who have two photos or more, tested on pairsDevTest
    train   the 291 people of train.rec, tested on the 6,000 pairs of LFW

A row is a classifier. Some of its settings start from a full classifier that was trained for half
of the images on the same people; the row itself then shows the other half. So all runs show as many
images, but for incomplete batches. The stages are:

    tune    every setting of every row, trained with two photos on View 1's people without 300 of
            them, and tested on 2,000 pairs of these 300. The best setting of a row is chosen.
    test    both sets with two photos, three seeds, the chosen settings
    curves  both sets with 3 and 5 photos and with all of them, seed 0

Every run is train.py with configs/shallow.yaml. A finished run is one JSON file in --results and is
not run again; an unfinished run continues from its checkpoint. Differences between rows have 95 %
intervals from resamples of the test pairs and of the seeds (eval/metrics/paired.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data.faces import open_faces
from data.files import atomic_write
from data.images import open_images
from data.pairs.drawn import from_faces
from data.pairs.lists import Pairs, index_names, read_pair_list
from eval.metrics.paired import accuracy_difference
from scripts._tables import TableRow, show_table
from scripts.experiments._judge import judge_model, right_of
from scripts.experiments._train import run_training
from scripts.experiments.view1_faces import alternating, people_of
from tools._cli import command

CONFIG = "configs/shallow.yaml"
IMAGES = 48_000  # that a run shows
BATCH = 48
HELD_OUT = 300  # people of View 1 on whom settings are chosen
SEEDS = 3
ALL = 999  # photos per person: all of them
DEPTHS = (2, 3, 5, ALL)
SETS = ("view1", "train")
Stage = Literal["tune", "test", "curves"]
Record = Mapping[str, Any]
"""A finished run, as its JSON file holds it."""


def head(scale: float, margin: float) -> str:
    """The override for a head."""
    return f"head={{name: cosface, scale: {scale:g}, margin: {margin:g}}}"


def siamese(agents: int, ema_decay: float) -> str:
    """The override for SST or MASST."""
    return f"classifier={{name: semi_siamese, agents: {agents}, ema_decay: {ema_decay:g}}}"


AFTER_FULL = "init.weights=START"
"""Marks a setting that starts from a full classifier."""
RANDOM = "init.weights=null"
START = (RANDOM, "classifier={name: full}", head(12, 0.1), "optim.lr=0.03")
"""That full classifier: the best setting that starts from random weights."""
HEADS = (head(12, 0.1), head(24, 0.2), head(32, 0.35))
POOL = "classifier={name: class_pool, size: 0.25, image_weight: 1}"
SETTINGS: dict[str, list[tuple[str, ...]]] = {
    "full": [
        *(
            (RANDOM, "classifier={name: full}", own, rate)
            for own, rate in product(HEADS, ("optim.lr=0.1", "optim.lr=0.03"))
        ),
        *(
            (AFTER_FULL, "init.centers=means", "classifier={name: full}", HEADS[0], rate)
            for rate in ("optim.lr=0.03", "optim.lr=0.01")
        ),
    ],
    "class pool": [
        *((RANDOM, POOL, own, "optim.lr=0.1") for own in (head(8, 0.1), *HEADS)),
        (AFTER_FULL, POOL, head(8, 0.1), "optim.lr=0.01"),
        (AFTER_FULL, POOL, HEADS[1], "optim.lr=0.01"),
    ],
    "SST": [
        *(
            (RANDOM, siamese(1, decay), own, "optim.lr=0.1")
            for own, decay in product(HEADS, (0.99, 0.999))
        ),
        *((AFTER_FULL, siamese(1, 0.99), own, "optim.lr=0.01") for own in HEADS),
        (AFTER_FULL, siamese(1, 0.99), HEADS[1], "optim.lr=0.03"),
        (AFTER_FULL, siamese(1, 0.95), HEADS[1], "optim.lr=0.01"),
    ],
    "MASST": [
        *(
            (RANDOM, siamese(agents, 0.99), own, "optim.lr=0.1")
            for own, agents in product(HEADS, (2, 3))
        ),
        *((AFTER_FULL, siamese(2, 0.99), own, "optim.lr=0.01") for own in HEADS),
        (AFTER_FULL, siamese(2, 0.99), HEADS[1], "optim.lr=0.03"),
        # Each agent follows in every second step only: these lag as far as 0.99 and 0.95 of one.
        (AFTER_FULL, siamese(2, 0.98), HEADS[1], "optim.lr=0.01"),
        (AFTER_FULL, siamese(2, 0.9), HEADS[1], "optim.lr=0.01"),
    ],
}
"""Row -> the settings that the tune stage tries."""


@dataclass(frozen=True)
class Run:
    """One training. setting: the number of its settings in SETTINGS. depth: photos per person."""

    stage: Stage
    faces: str
    row: str
    setting: int
    depth: int
    seed: int

    @property
    def name(self) -> str:
        row = self.row.replace(" ", "_")
        return f"{self.stage}_{self.faces}_{row}_{self.setting}_depth{self.depth}_{self.seed}"


def cut(labels: np.ndarray, depth: int, seed: int) -> np.ndarray:
    """Rows (M,) of at most `depth` random images of each label that has two or more."""
    rng = np.random.default_rng([seed, depth])
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    within = np.arange(len(order)) - starts[labels[order]]
    return np.sort(order[(within < depth) & (counts[labels[order]] > 1)])


def view1_people(faces: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels of LFW's zip: the people to train on in the tune stage, and those held out."""
    lfw = open_faces(faces / "lfw_112.zip")
    numbers = {name: number for number, name in enumerate(getattr(lfw, "names", None) or [])}
    counts = np.bincount(lfw.labels)
    listed = [numbers[name] for name in people_of(faces / "protocol/peopleDevTrain.txt")]
    several = np.array([number for number in listed if counts[number] > 1])
    shuffled = np.random.default_rng(0).permutation(several)
    return np.sort(shuffled[HELD_OUT:]), np.sort(shuffled[:HELD_OUT])


def training_rows(run: Run, faces: Path) -> tuple[str, np.ndarray]:
    """The set's path below FACES, and its index list: rows, or rows and labels."""
    if run.faces == "train":
        return "train.rec", cut(open_faces(faces / "train.rec").labels, run.depth, run.seed)
    kept, held = view1_people(faces)
    people = kept if run.stage == "tune" else np.union1d(kept, held)
    return "lfw_112.zip", of_people(faces, people, run.depth, run.seed)


def of_people(faces: Path, people: np.ndarray, depth: int, seed: int = 0) -> np.ndarray:
    """Rows and new labels (M,2) of some people of LFW's zip."""
    labels = open_faces(faces / "lfw_112.zip").labels
    rows = cut(labels, depth, seed)
    rows = rows[np.isin(labels[rows], people)]
    return np.stack([rows, np.searchsorted(people, labels[rows])], 1)


def epochs(run: Run, images: int, shown: int = IMAGES) -> int:
    """Epochs that show about so many of a set's images. A class pool's are three times as long."""
    thirds = round(shown / (images // BATCH * BATCH) / 3)
    return thirds if run.row == "class pool" else 3 * thirds


def train(run: Run, faces: Path, runs: Path) -> list[Path]:
    """Run train.py, or continue it. Returns the run's folder, behind that of its start."""
    path, rows = training_rows(run, faces)
    runs.mkdir(parents=True, exist_ok=True)
    listed = runs / f"{run.stage}_{run.faces}_depth{run.depth}_{run.seed}.npy"
    np.save(listed, rows)
    of_all = [
        *("evaluate.sets=[]", f"data.train={faces / path}", f"data.subset={listed.resolve()}"),
        *(f"run.seed={run.seed}", f"optim.batch_size={BATCH}"),
    ]
    options, folder = SETTINGS[run.row][run.setting], runs / run.name
    if AFTER_FULL not in options:
        run_training(CONFIG, [*of_all, f"optim.epochs={epochs(run, len(rows))}", *options], folder)
        return [folder]
    # All rows of a stage, set, depth and seed have the same start.
    first = replace(run, row="start", setting=0)
    start = runs / first.name
    number = epochs(first, len(rows), IMAGES // 2)
    run_training(CONFIG, [*of_all, f"optim.epochs={number}", *START], start)
    own = [f"init.weights={start}" if one == AFTER_FULL else one for one in options]
    number = epochs(run, len(rows), IMAGES // 2)
    run_training(CONFIG, [*of_all, f"optim.epochs={number}", *own], folder)
    return [start, folder]


def test_pairs(run: Run, faces: Path, runs: Path) -> Pairs:
    """The pairs that a run is tested on."""
    if run.stage == "tune":
        held = runs / "held_out.npy"
        np.save(held, of_people(faces, view1_people(faces)[1], ALL))
        return from_faces(f"subset:{held};{faces / 'lfw_112.zip'}", count=2000)
    listed = faces / "protocol/pairs.txt"
    if run.faces == "view1":
        listed = runs / "view1_pairs.txt"
        with atomic_write(listed, "w") as file:
            file.write(alternating(faces / "protocol/pairsDevTest.txt"))
    named, same = read_pair_list(listed)
    names, first, second = index_names(named)
    return Pairs(open_images(faces / "lfw_112.zip", names), first, second, same)


def test(run: Run, faces: Path, runs: Path) -> dict[str, Any]:
    """Figures of the trained model; `right` says in base 64 which pairs were judged correctly."""
    pairs = test_pairs(run, faces, runs)
    return judge_model(runs / run.name, run.faces, pairs, ("accuracy", "auc", "eer"))


def finish(run: Run, faces: Path, runs: Path, results: Path) -> None:
    """Train, test and write the run's JSON file, unless it exists already."""
    path = results / f"{run.name}.json"
    if path.exists():
        return
    last = [last_line(folder) for folder in train(run, faces, runs)]
    figures = test(run, faces, runs)
    spent = {
        "images": sum(line["images"] for line in last),
        "seconds": round(sum(line["seconds"] for line in last), 1),
        "loss": last[-1]["loss"],
    }
    record = {**vars(run), "options": SETTINGS[run.row][run.setting], **spent, **figures}
    results.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump(record, file)
    print(f"{run.name}: {figures['accuracy']:.2f} %", flush=True)


def last_line(folder: Path) -> Record:
    """The last line of a run's log that has a loss."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found: Record = [line for line in map(json.loads, lines) if "loss" in line][-1]
    return found


def read_records(results: Path) -> list[Record]:
    """The finished runs."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


def chosen(records: Sequence[Record], row: str) -> int | None:
    """The setting with the highest accuracy in the tune stage; None until all were tried."""
    tuned = {
        r["setting"]: r["accuracy"] for r in records if (r["stage"], r["row"]) == ("tune", row)
    }
    return max(tuned, key=tuned.__getitem__) if len(tuned) == len(SETTINGS[row]) else None


def runs_of(stage: Stage, records: Sequence[Record]) -> Iterator[Run]:
    """The runs of a stage. The later stages have those of the rows whose setting is chosen."""
    if stage == "tune":
        for row, settings in SETTINGS.items():
            yield from (Run(stage, "view1", row, number, 2, 0) for number in range(len(settings)))
        return
    best = {row: chosen(records, row) for row in SETTINGS}
    places = (
        product(range(SEEDS), (2,), SETS) if stage == "test" else product((0,), DEPTHS[1:], SETS)
    )
    for seed, depth, faces in places:
        for row, setting in best.items():
            if setting is not None:
                yield Run(stage, faces, row, setting, depth, seed)


def table(records: Sequence[Record]) -> list[TableRow]:
    """One line per set, depth and row: the mean over the seeds, and how far it is above `full`."""
    lines: list[TableRow] = []
    for faces, depth in product(SETS, DEPTHS):
        own = [r for r in records if (r["faces"], r["depth"]) == (faces, depth)]
        found = {
            row: [r for r in own if r["row"] == row and r["stage"] != "tune"] for row in SETTINGS
        }
        right = {row: np.stack([*map(right_of, some)]) for row, some in found.items() if some}
        for row, decisions in right.items():
            above = ""
            if row != "full" and "full" in right:
                above = str(accuracy_difference(decisions, right["full"]))
            lines.append(
                {
                    "set": faces,
                    "photos": "all" if depth == ALL else depth,
                    "row": row,
                    "seeds": len(decisions),
                    "accuracy": f"{np.mean([r['accuracy'] for r in found[row]]):.2f}",
                    "above full": above,
                }
            )
    return lines


def run_experiment(
    faces: Path,
    *,
    stages: tuple[Stage, ...] = ("tune", "test", "curves"),
    runs: Path = Path("runs/shallow"),
    results: Path = Path("docs/results/shallow"),
    table_only: bool = False,
) -> None:
    """Do what is not yet done, and print the table.

    faces: folder of the sets and lists.
    stages: stages to run, in this order.
    runs: folder for run folders.
    results: folder for finished runs.
    table_only: print the table of the finished runs, and train nothing.
    """
    torch.set_num_threads(1)
    for stage in () if table_only else stages:
        for run in runs_of(stage, read_records(results)):
            finish(run, faces.resolve(), runs, results)
    show_table(table(read_records(results)))


main = command(run_experiment)
