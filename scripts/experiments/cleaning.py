"""Does cleaning find what was planted in real faces, and is a model better without it?

    python -m scripts.experiments.cleaning --faces FACES
    python -m scripts.experiments.cleaning --table-only

FACES holds train.rec, lfw_112.zip and protocol/pairs.txt. Each seed plants its own errors in the
labels of train.rec: a tenth of the people get two labels, and then a fifth of the images get the
label of another person. Another arm joins pairs of people under one label. The rows are:

    original    trains on the labels as they are
    noisy       trains on the planted ones, and finds wrong labels with its own vectors
    again       goes on from `noisy` without what it found, and finds wrong labels in the whole set
    third       goes on from `again` likewise; on what its vectors and those of `again` leave,
                `again` finds the people under two labels
    cleaned     trains from random weights on what is left, under the labels that were joined, and
                finds wrong labels with its own vectors and those of `third` together
    fourth      goes on from `cleaned` without these, and finds them with its own vectors and those
                of `third` together
    joined      trains on joined labels, and finds those that are two people
    difference_75, difference_50, random_75, random_50
                train on that percentage of the images of train.rec, chosen by `original`'s p(true)
                or at random
    overlap     trains nothing: finds people of train.rec in LFW, then those of 20 people of LFW who
                were planted in train.rec with other photos, by `original`'s vectors; and the same
                by stored vectors of LFW, where strangers of LFW take the place of train.rec

All rows but `again`, `third`, `fourth` and `overlap` train the same network for the same epochs
from random weights. Every finished row leaves a JSON file in --results, so the command may be
stopped and started again. Differences have 95 % intervals (eval/metrics/paired.py).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.faces import open_faces
from data.files import atomic_write
from data.pairs.lists import from_list
from data.types import FaceSet
from eval.cleaning.merge import find_merges
from eval.cleaning.noise import Noise, find_noise
from eval.cleaning.overlap import find_overlap, mean_centers
from eval.cleaning.prune import prune_at_random, prune_by_difference, true_probabilities
from eval.cleaning.split import find_splits
from eval.embed import embed_faces, normalized
from recognition.models.load import load_model
from scripts._tables import show_table
from scripts.experiments._cleaning_tables import accuracy_table, found_table
from scripts.experiments._judge import judge_model
from scripts.experiments._train import run_training
from tools._cli import command

CONFIG = "configs/quarter_time.yaml"
SETTINGS = (
    *("data.size=56", "data.augment.shift=3", "optim.batch_size=32", "run.keep=1"),
    "scheduler={name: cosine, warmup_steps: 100}",
)
EPOCHS, LR = 10, 0.1
AGAIN_EPOCHS, AGAIN_LR = 6, 0.06
SEEDS = 3
FLIPPED, DIVIDED = 0.2, 0.1  # shares of images and of people
LEAST = 10  # images of a person who gets two labels
PRECISION = 0.8  # expected; more is reached, because a network remembers some wrong labels
LATE_PRECISION = 0.9  # the same of `cleaned` and `fourth`, which saw fewer wrong labels
LOWER_PRECISION = 0.875  # another of `fourth`, which was looked for after all rounds
BAR = 0.9  # precision at which the best recall of any threshold is reported
SCALE = 24.0  # of the softmax of p(true), as in the head
PRUNED = {"difference_75": 0.75, "difference_50": 0.5, "random_75": 0.75, "random_50": 0.5}
OVERLAP = "overlap"
STORED = "lfw_embeddings_mobilefacenet"  # vectors (.npy) and names (.txt) of a published model
PLANTED, PHOTOS, STRANGERS = 20, 6, 500  # people, least photos of each, strangers of LFW
ROWS = ("noisy", "again", "third", "cleaned", "fourth", "original", "joined", *PRUNED, OVERLAP)


@dataclass(frozen=True)
class Planted:
    """Planted errors.

    labels: int64 (N,). flipped: bool (N,), images with the label of another person. twins: the two
    labels of each person who has two.
    """

    labels: np.ndarray
    flipped: np.ndarray
    twins: set[tuple[int, int]] = field(default_factory=set)


def plant(labels: np.ndarray, seed: int) -> Planted:
    """Give people a second label, then images another person's label, from labels int64 (N,)."""
    rng = np.random.default_rng(seed)
    people = int(labels.max()) + 1
    large = np.flatnonzero(np.bincount(labels) >= LEAST)
    divided = np.sort(rng.choice(large, round(DIVIDED * people), replace=False))
    planted = labels.copy()
    for place, person in enumerate(divided.tolist()):
        own = rng.permutation(np.flatnonzero(labels == person))
        planted[own[: len(own) // 2]] = people + place
    person_of = np.concatenate([np.arange(people), divided])
    flipped = np.sort(rng.choice(len(labels), round(FLIPPED * len(labels)), replace=False))
    for image in flipped.tolist():
        planted[image] = rng.choice(np.flatnonzero(person_of != labels[image]))
    is_flipped = np.zeros(len(labels), bool)
    is_flipped[flipped] = True
    twins = {(int(person), people + place) for place, person in enumerate(divided)}
    return Planted(planted, is_flipped, twins)


def join(labels: np.ndarray, seed: int) -> tuple[np.ndarray, set[int]]:
    """Labels int64 (N,) of which a tenth are two people, and those labels."""
    rng = np.random.default_rng(seed)
    large = np.flatnonzero(np.bincount(labels) >= LEAST)
    count = round(DIVIDED * (int(labels.max()) + 1))
    drawn = rng.choice(large, 2 * count, replace=False)
    joined = labels.copy()
    for kept, gone in zip(drawn[:count], drawn[count:], strict=True):
        joined[labels == gone] = kept
    return joined, set(drawn[:count].tolist())


def found_of(found: set[Any], planted: set[Any]) -> dict[str, float]:
    """Numbers, precision and recall, in percent, of what was found."""
    right = len(found & planted)
    return {
        "planted": len(planted),
        "found": len(found),
        "right": right,
        "precision": round(100 * right / max(1, len(found)), 2),
        "recall": round(100 * right / len(planted), 2),
    }


def noise_figures(noise: Noise, flipped: np.ndarray) -> dict[str, float]:
    """What was found of the flipped images, and what the threshold on the margin promised."""
    figures = found_of(set(noise.rows.tolist()), set(np.flatnonzero(flipped).tolist()))
    ordered = flipped[np.argsort(noise.margin, kind="stable")]
    precision = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    last = np.flatnonzero(precision >= BAR)
    best = np.count_nonzero(ordered[: last[-1] + 1]) if len(last) else 0
    return {
        **figures,
        "expected_share": round(100 * noise.margin_cut.share, 2),
        "expected_precision": round(100 * noise.margin_cut.precision, 2),
        "expected_recall": round(100 * noise.margin_cut.recall, 2),
        "best_recall": round(100 * best / np.count_nonzero(flipped), 2),
    }


@dataclass(frozen=True)
class Place:
    """One seed's sets, folders and models."""

    faces: Path
    runs: Path
    results: Path
    seed: int

    @cached_property
    def images(self) -> FaceSet:
        return open_faces(str(self.faces / "train.rec"))

    @cached_property
    def labels(self) -> np.ndarray:
        found: np.ndarray = np.asarray(self.images.labels).astype(np.int64)
        return found

    def folder(self, row: str) -> Path:
        return self.runs / f"{row}_{self.seed}"

    def rest(self, row: str) -> Path:
        return self.runs / f"{row}_{self.seed}_rest.npy"

    @property
    def cleaned(self) -> Path:
        return self.runs / f"cleaned_{self.seed}_list.npy"

    def train(self, row: str, rows: np.ndarray, labels: np.ndarray, *overrides: str) -> float:
        """Train on these rows under these labels, unless that is done. Returns the CPU seconds."""
        seconds = self.runs / f"{row}_{self.seed}_seconds.txt"
        if seconds.exists():
            return float(seconds.read_text())
        chosen = self.runs / f"{row}_{self.seed}.npy"
        self.runs.mkdir(parents=True, exist_ok=True)
        np.save(chosen, np.stack([rows, labels], 1))
        options = (f"data.root={self.faces}", f"data.subset={chosen.absolute()}", *SETTINGS)
        run = ("data.renumber=true", f"run.seed={self.seed}", "evaluate.sets=[]")
        lengths = (f"optim.epochs={EPOCHS}", f"optim.lr={LR}")
        spent = run_training(CONFIG, [*options, *run, *lengths, *overrides], self.folder(row))
        seconds.write_text(f"{spent:.1f}")
        return round(spent, 1)

    def vectors(self, row: str) -> np.ndarray:
        """Vectors float32 (N,D) of all images of train.rec by a row's model."""
        path = self.runs / f"{row}_{self.seed}_vectors.npy"
        if not path.exists():
            model = load_model(self.folder(row), device="cpu")
            found = normalized(embed_faces(model, self.images, model.size))
            with atomic_write(path, "wb") as file:
                np.save(file, found.astype(np.float32))
        stored: np.ndarray = np.load(path)
        return stored

    def test(self, row: str) -> dict[str, Any]:
        """Accuracy on the 6,000 pairs of LFW, and the pairs that were judged correctly, as text."""
        pairs = from_list(self.faces / "protocol/pairs.txt", self.faces / "lfw_112.zip")
        return judge_model(self.folder(row), "lfw", pairs, ("accuracy", "tar@0.01", "auc"))


def noisy(place: Place) -> dict[str, Any]:
    planted = plant(place.labels, place.seed)
    seconds = place.train("noisy", np.arange(len(planted.labels)), planted.labels)
    return {"cpu_seconds": seconds, "noise": find_and_leave_out(place, "noisy", planted)}


def again(place: Place) -> dict[str, Any]:
    planted = plant(place.labels, place.seed)
    seconds = go_on(place, "again", "noisy", planted)
    return {"cpu_seconds": seconds, "noise": find_and_leave_out(place, "again", planted)}


def third(place: Place) -> dict[str, Any]:
    planted = plant(place.labels, place.seed)
    seconds = go_on(place, "third", "again", planted)
    figures = noise_figures(find_in(place, planted, PRECISION, "third"), planted.flipped)
    both = find_in(place, planted, PRECISION, "again", "third")
    rest = np.setdiff1d(np.arange(len(planted.labels)), both.rows)
    merges = find_merges(place.vectors("again")[rest], planted.labels[rest])
    target = [merges.target.get(label, label) for label in planted.labels[rest].tolist()]
    np.save(place.cleaned, np.stack([rest, target], 1))
    pairs = {(int(one), int(other)) for one, other in merges.pairs}
    return {
        "cpu_seconds": seconds,
        "noise": figures,
        "noise_both": noise_figures(both, planted.flipped),
        "merge": found_of(pairs, planted.twins),
    }


def go_on(place: Place, row: str, before: str, planted: Planted) -> float:
    """Go on from another row without what it found. Returns the CPU seconds."""
    rest = np.load(place.rest(before))
    start = (f"init.weights={place.folder(before)}", "init.centers=means")
    length = (f"optim.epochs={AGAIN_EPOCHS}", f"optim.lr={AGAIN_LR}")
    return place.train(row, rest, planted.labels[rest], *start, *length)


def find_in(place: Place, planted: Planted, precision: float, *rows: str) -> Noise:
    """Wrong labels by the vectors of one or more rows.

    The cosine of two joined vectors is the mean of the rows' cosines.
    """
    joined = np.concatenate([place.vectors(row) for row in rows], axis=1)
    return find_noise(normalized(joined), planted.labels, precision=precision)


def find_and_leave_out(place: Place, row: str, planted: Planted) -> dict[str, float]:
    """Figures of the wrong labels that a row's vectors show; keeps the images for the next row."""
    noise = find_in(place, planted, PRECISION, row)
    np.save(place.rest(row), np.setdiff1d(np.arange(len(planted.labels)), noise.rows))
    return noise_figures(noise, planted.flipped)


def cleaned(place: Place) -> dict[str, Any]:
    planted = plant(place.labels, place.seed)
    rows, labels = np.load(place.cleaned).T
    seconds = place.train("cleaned", rows, labels)
    noise = find_in(place, planted, LATE_PRECISION, "cleaned", "third")
    np.save(place.rest("cleaned"), np.setdiff1d(np.arange(len(planted.labels)), noise.rows))
    figures = noise_figures(noise, planted.flipped)
    return {"cpu_seconds": seconds, "images": len(rows), "noise_both": figures}


def fourth(place: Place) -> dict[str, Any]:
    planted = plant(place.labels, place.seed)
    seconds = go_on(place, "fourth", "cleaned", planted)
    tries = {
        "noise": (LATE_PRECISION, ["fourth"]),
        "noise_both": (LATE_PRECISION, ["fourth", "third"]),
        "noise_both_lower": (LOWER_PRECISION, ["fourth", "third"]),
    }
    figures = {
        key: noise_figures(find_in(place, planted, precision, *rows), planted.flipped)
        for key, (precision, rows) in tries.items()
    }
    return {"cpu_seconds": seconds, **figures}


def original(place: Place) -> dict[str, Any]:
    return {"cpu_seconds": place.train("original", np.arange(len(place.labels)), place.labels)}


def joined(place: Place) -> dict[str, Any]:
    labels, two = join(place.labels, place.seed)
    seconds = place.train("joined", np.arange(len(labels)), labels)
    splits = find_splits(place.vectors("joined"), labels)
    found = set(splits.identities.tolist())
    right = images = 0
    for label in found & two:
        for side in (False, True):
            people = place.labels[(labels == label) & (splits.second == side)]
            right += int(np.bincount(people).max())
            images += len(people)
    return {
        "cpu_seconds": seconds,
        "split": {**found_of(found, two), "right_side": round(100 * right / max(1, images), 2)},
    }


def overlap(place: Place) -> dict[str, Any]:
    model = load_model(place.folder("original"), device="cpu")
    lfw = open_faces(str(place.faces / "lfw_112.zip"), check=False)
    path = place.runs / f"lfw_{place.seed}_vectors.npy"
    if not path.exists():
        np.save(path, normalized(embed_faces(model, lfw, model.size)))
    vectors, people = np.load(path), np.asarray(lfw.labels)
    train = place.vectors("original")
    none, _ = find_planted(train, place.labels, vectors, people, np.zeros(len(people), bool))
    moved = drawn_photos(people, place.seed)
    found, there = find_planted(train, place.labels, vectors, people, moved)
    stored = normalized(np.load(place.faces / f"{STORED}.npy").astype(np.float32))
    names = (place.faces / f"{STORED}.txt").read_text().split()
    owner_names, owners = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    rng = np.random.default_rng(place.seed)
    moved = drawn_photos(owners, place.seed)
    others = np.setdiff1d(owners, owners[moved])
    strange = np.isin(owners, rng.choice(others, STRANGERS, replace=False))
    # A stranger leaves LFW for the training set, with all photos.
    kept = ~strange
    hits, owned = find_planted(
        stored[strange], owners[strange], stored[kept], owners[kept], moved[kept]
    )
    # LFW has some people under two names, who are found as well.
    strangers = sorted((one, other) for one, other in hits - owned if other < len(owner_names))
    return {
        "train_rec_in_lfw": len(none),
        "original": found_of(found, there),
        "mobilefacenet": found_of(hits, owned),
        "other_pairs": [f"{owner_names[one]}, {owner_names[other]}" for one, other in strangers],
    }


def drawn_photos(people: np.ndarray, seed: int) -> np.ndarray:
    """Half of the photos of drawn people, bool (N,): those that move to the training set."""
    rng = np.random.default_rng(seed)
    labels, counts = np.unique(people, return_counts=True)
    moved = np.zeros(len(people), bool)
    for person in rng.choice(labels[counts >= PHOTOS], PLANTED, replace=False):
        own = rng.permutation(np.flatnonzero(people == person))
        moved[own[: len(own) // 2]] = True
    return moved


def find_planted(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    people: np.ndarray,
    moved: np.ndarray,
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(person, identity) pairs that are found, and those that are planted.

    The test images `moved`, bool (T,), join the training set as identities of their own.
    """
    planted = np.unique(people[moved])
    fresh = labels.max() + 1 + np.searchsorted(planted, people[moved])
    identities, dense = np.unique(np.concatenate([labels, fresh]), return_inverse=True)
    rest, own = np.unique(people[~moved], return_inverse=True)
    centers = mean_centers(np.concatenate([train, test[moved]]), dense)[0]
    found = find_overlap(centers, mean_centers(test[~moved], own)[0])
    pairs = zip(rest[found.people].tolist(), identities[found.identities].tolist(), strict=True)
    there = {(int(person), int(labels.max()) + 1 + k) for k, person in enumerate(planted)}
    return set(pairs), there


def pruned(row: str) -> Callable[[Place], dict[str, Any]]:
    def prune(place: Place) -> dict[str, Any]:
        if row.startswith("random"):
            rows = prune_at_random(place.labels, PRUNED[row], seed=place.seed)
        else:
            likely = true_probabilities(place.vectors("original"), place.labels, scale=SCALE)
            rows = prune_by_difference(likely, place.labels, PRUNED[row])
        return {"cpu_seconds": place.train(row, rows, place.labels[rows]), "images": len(rows)}

    return prune


DO: dict[str, Callable[[Place], dict[str, Any]]] = {
    "noisy": noisy,
    "again": again,
    "third": third,
    "cleaned": cleaned,
    "fourth": fourth,
    "original": original,
    "joined": joined,
    **{row: pruned(row) for row in PRUNED},
    OVERLAP: overlap,
}


def finish(row: str, place: Place) -> None:
    """Do one row with one seed, unless its file exists already."""
    path = place.results / f"{row}_{place.seed}.json"
    if path.exists():
        return
    record = {"row": row, "seed": place.seed, **DO[row](place)}
    if row != OVERLAP:
        record["lfw"] = place.test(row)
    place.results.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump(record, file, indent=1)
    print(f"{row} {place.seed}: done", flush=True)


def run_experiment(
    *,
    faces: Path | None = None,
    rows: tuple[str, ...] = ROWS,
    seeds: int = SEEDS,
    runs: Path = Path("runs/cleaning"),
    results: Path = Path("docs/results/cleaning"),
    table_only: bool = False,
) -> None:
    """Do what is not yet done, and print the tables.

    faces: folder of the sets and lists.
    rows: rows to do.
    seeds: number of seeds.
    runs: folder for run folders.
    results: folder for finished rows.
    table_only: print the tables of the finished rows, and train nothing.
    """
    if not table_only:
        if faces is None:
            raise ValueError("choose --faces FOLDER, the folder of the sets, or --table-only")
        torch.set_num_threads(1)
        for seed in range(seeds):
            place = Place(faces, runs, results, seed)
            for row in rows:
                finish(row, place)
    show_table(found_table(results))
    print()
    show_table(accuracy_table(results, [row for row in ROWS if row != OVERLAP]))


main = command(run_experiment)
