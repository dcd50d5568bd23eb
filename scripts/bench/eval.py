"""Measures the evaluation protocols beside literal loops: time and memory.

    python -m scripts.bench.eval
    python -m scripts.bench.eval --part bin --bin FILE --model RUN

    pairs      6,000 pairs of 512-d embeddings. Ours: distances and all figures. Literal: distances
               in plain numpy, then 400 thresholds × 10 folds.
    templates  IJB-C's size: 469,375 images, 23,124 templates, 15,658,489 pairs. Literal: one
               template and one batch of pairs at a time, on a tenth of that size. This favors the
               literal loop, whose cost grows with templates × images.
    bin        A .bin of 6,000 drawn pairs through a model without parameters, or FILE through the
               model of RUN: the peak of memory above what the process held before.

Each part runs in a separate process, so that its peak memory can be measured. Our functions and the
literal loops alternate, and figures are medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from data.options import Count
from data.pairs.verification_bin import write_bin
from eval.benchmarks import pairs
from eval.embed import Embed
from eval.metrics.templates import pair_scores, pool_templates
from eval.metrics.verification import (
    grid_accuracy,
    nearest_tar,
    pair_distances,
    roc,
    tar_at_far,
)
from recognition.memory import peak_bytes, resident_bytes
from scripts._tables import show_figures
from scripts.bench._measure import in_own_process, in_turn, median_ratio, seconds
from tools._cli import command
from tools._model import ModelOptions

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
Figures = dict[str, Any]


def bench_pairs(rounds: int) -> Figures:
    """CPU milliseconds of our functions and of the literal loops."""
    rng = np.random.default_rng(0)
    same = np.tile(np.repeat([True, False], 300), 10)
    noise = 4 * rng.normal(size=(6000, 512))
    first, other = rng.normal(size=(2, 6000, 512))
    second = np.where(same[:, None], first, other) + noise
    embeddings = np.stack([first, second], 1).reshape(12000, 512).astype(np.float32)
    left, right = np.arange(0, 12000, 2), np.arange(1, 12000, 2)
    distances = literal_distances(embeddings)

    def all_figures() -> tuple[float, float]:
        metrics = pairs.score_pairs("bench", embeddings, left, right, same).metrics
        return metrics["accuracy"], metrics["accuracy_std"]

    def from_embeddings() -> tuple[float, float]:
        found = grid_accuracy(pair_distances(embeddings, left, right), same)
        return 100 * found.mean, 100 * found.std

    # A short call right after a long one finds cold caches, so short ones run nine times per round.
    works: dict[str, tuple[int, Callable[[], object]]] = {
        "all_figures": (9, all_figures),
        "accuracy_from_embeddings": (9, from_embeddings),
        "accuracy_from_distances": (9, lambda: grid_accuracy(distances, same)),
        "literal_from_embeddings": (1, lambda: literal_loop(literal_distances(embeddings), same)),
        "literal_from_distances": (1, lambda: literal_loop(distances, same)),
        "literal_evaluate": (1, lambda: literal_evaluate(embeddings, same)),
    }

    def cpu_seconds(name: str) -> float:
        calls, work = works[name]
        return statistics.median(seconds(work, time.thread_time) for _ in range(calls))

    times = in_turn(works, rounds, cpu_seconds)
    wall = [seconds(all_figures) for _ in range(5 * rounds)]
    return {
        "all_figures_wall_ms": 1e3 * statistics.median(wall),
        "all_figures_wall_ms_best": 1e3 * min(wall),
        **{f"{name}_cpu_ms": 1e3 * statistics.median(of) for name, of in times.items()},
        "ratio_from_embeddings": median_ratio(
            times["literal_from_embeddings"], times["accuracy_from_embeddings"]
        ),
        "ratio_from_distances": median_ratio(
            times["literal_from_distances"], times["accuracy_from_distances"]
        ),
        "ratio_evaluate": median_ratio(times["literal_evaluate"], times["all_figures"]),
        "accuracy": all_figures()[0],
        "same_figures": all_figures() == literal_loop(distances, same) == from_embeddings(),
    }


def literal_distances(embeddings: np.ndarray) -> np.ndarray:
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.asarray(np.sum(np.square(unit[0::2] - unit[1::2]), 1))


def literal_accuracy(distances: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """The peers' accuracy at a threshold, with the two counts that they compute but do not use."""
    accepted = np.less(distances, threshold)
    tp = np.sum(np.logical_and(accepted, same))
    np.sum(np.logical_and(accepted, np.logical_not(same)))
    tn = np.sum(np.logical_and(np.logical_not(accepted), np.logical_not(same)))
    np.sum(np.logical_and(np.logical_not(accepted), same))
    return float(tp + tn) / distances.size


def literal_loop(distances: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy over ten folds, by trying all thresholds."""
    folds, accuracy, thresholds = np.arange(6000) // 600, [], np.arange(0, 4, 0.01)
    for k in range(10):
        train, test = folds != k, folds == k
        found = [literal_accuracy(distances[train], same[train], t) for t in thresholds]
        # The peers compute the ROC of the fold here. It costs as much as the search.
        [literal_accuracy(distances[test], same[test], t) for t in thresholds]
        best = thresholds[int(np.argmax(found))]
        accuracy.append(literal_accuracy(distances[test], same[test], best))
    return 100 * float(np.mean(accuracy)), 100 * float(np.std(accuracy))


def literal_evaluate(embeddings: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """The peers' whole evaluate(): 4,000 thresholds × 10 folds for the TAR, then the loop."""
    distances, folds = literal_distances(embeddings), np.arange(6000) // 600
    for k in range(10):
        train = np.flatnonzero(folds != k)
        for threshold in np.arange(0, 4, 0.001):
            literal_accuracy(distances[train], same[train], threshold)
    return literal_loop(distances, same)


def draw_templates(share: int) -> dict[str, np.ndarray]:
    """A random set like IJB-C, of 3,531 people, whose numbers are divided by `share`."""
    rng = np.random.default_rng(0)
    images, templates, count, genuine = (n // share for n in (469_375, 23_124, 15_658_489, 19_557))
    template = np.append(np.arange(templates), rng.integers(0, templates, images - templates))
    subject = rng.integers(0, 3531 // share, templates)

    # An embedding is its person's vector and nine times as much noise.
    people = rng.standard_normal((3531 // share, 512), dtype=np.float32)
    embeddings = np.empty((images, 512), np.float32)
    for start in range(0, images, 10_000):
        here = template[start : start + 10_000]
        noise = rng.standard_normal((len(here), 512), dtype=np.float32)
        embeddings[start : start + 10_000] = people[subject[here]] + 9 * noise

    # Genuine pairs are neighbors when templates are sorted by person. All pairs are then shuffled.
    first, second = rng.integers(0, templates, (2, count))
    mates = np.argsort(subject, kind="stable")
    at = rng.integers(1, templates, genuine)
    first[:genuine], second[:genuine] = mates[at - 1], mates[at]
    order = rng.permutation(count)
    first, second = first[order], second[order]
    return {
        "embeddings": embeddings,
        "template": template,
        "media": rng.integers(0, images // 2, images),
        "detector": rng.uniform(0.5, 1, images).astype(np.float32),
        "first": first,
        "second": second,
        "same": subject[first] == subject[second],
    }


def our_table(data: dict[str, np.ndarray], stamps: list[float]) -> list[float]:
    """nearest_tar and tar_at_far at each of FARS. Adds the time after each of three stages."""
    _, vectors = pool_templates(
        data["embeddings"], data["template"], data["media"], detector=data["detector"]
    )
    stamps.append(time.perf_counter())
    scores = pair_scores(vectors, data["first"], data["second"])
    stamps.append(time.perf_counter())
    curve = roc(scores, data["same"])
    table = [*nearest_tar(curve, FARS), *(tar_at_far(curve, far) for far in FARS)]
    stamps.append(time.perf_counter())
    return table


def literal_table(data: dict[str, np.ndarray]) -> list[float]:
    """The peers' way: pooling template by template, gathered pairs, scikit-learn's ROC."""
    from sklearn.metrics import roc_curve

    weighed = data["embeddings"] * data["detector"][:, None]
    unique = np.unique(data["template"])
    pooled = np.zeros((len(unique), weighed.shape[1]))
    for row, template in enumerate(unique):
        (inside,) = np.where(data["template"] == template)
        media = data["media"][inside]
        pooled[row] = sum(weighed[inside[media == m]].mean(0) for m in np.unique(media))
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    scores = np.zeros(len(data["first"]))
    for start in range(0, len(scores), 100_000):
        here = slice(start, start + 100_000)
        scores[here] = np.sum(pooled[data["first"][here]] * pooled[data["second"][here]], -1)
    far, tar, _ = roc_curve(data["same"], scores)
    far, tar = np.flipud(far), np.flipud(tar)
    return [float(tar[np.argmin(np.abs(far - wanted))]) for wanted in FARS]


def bench_templates(share: int) -> Figures:
    """Seconds and memory at the full size, and the ratio to the literal table at a tenth of it."""
    whole = draw_templates(share)
    before, cpu, stamps = resident_bytes(), time.process_time(), [time.perf_counter()]
    table = our_table(whole, stamps)
    cpu, peak = time.process_time() - cpu, peak_bytes()
    pooling, scoring, rates = np.diff(stamps).tolist()

    tenth = draw_templates(10 * share)
    works = {"ours": lambda: our_table(tenth, []), "literal": lambda: literal_table(tenth)}
    times = in_turn(works, 3, lambda name: seconds(works[name]))
    apart = np.subtract(our_table(tenth, [])[: len(FARS)], literal_table(tenth))
    return {
        "seconds": stamps[-1] - stamps[0],
        "pooling_seconds": pooling,
        "pairs_seconds": scoring,
        "table_seconds": rates,
        "cpu_seconds": cpu,
        "input_mb": sum(array.nbytes for array in whole.values()) / 1e6,
        "peak_mb_above_inputs": max(peak - before, 0) / 1e6,
        "tenth_seconds": statistics.median(times["ours"]),
        "tenth_literal_seconds": statistics.median(times["literal"]),
        "tenth_ratio": median_ratio(times["literal"], times["ours"]),
        "nearest_tar@1e-4": table[2],
        "tar@1e-4": table[8],
        "largest_difference_from_literal": float(np.abs(apart).max()),
    }


def bench_bin(bin: str | None, source: ModelOptions) -> Figures:
    """Seconds and memory of the pairs benchmark on a .bin."""

    def shrink(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.float(), 8).flatten(1)[:, :512]

    with tempfile.TemporaryDirectory() as folder:
        path, size = bin, 112
        embed: Embed = shrink
        if path:
            embed = model = source.load()
            size = model.size
        else:
            path = draw_bin(f"{folder}/set.bin")
            shrink(torch.zeros(64, 3, size, size))  # torch's own buffers belong to the model
        benchmark = pairs.build(name="bin", bin=path)
        before, start = resident_bytes(), time.perf_counter()
        result = benchmark(embed, size)
        return {
            "pairs": result.settings["pairs"],
            "file_mb": Path(path).stat().st_size / 1e6,
            "accuracy": result.metrics["accuracy"],
            "seconds": time.perf_counter() - start,
            "peak_mb_above_model": (peak_bytes() - before) / 1e6,
        }


def draw_bin(path: str) -> str:
    """Write 6,000 pairs of noise, 8 kB per image.

    No two images are equal, because a pickle stores equal ones once.
    """
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(200):
        noise = cv2.resize(rng.integers(0, 256, (28, 28, 3), np.uint8), (112, 112))
        encoded.append(cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    images = [encoded[i % 200] + i.to_bytes(2, "little") for i in range(12_000)]
    write_bin(path, images, np.tile([True, False], 3000))
    return path


def run(
    *,
    part: Literal["pairs", "templates", "bin"] | None = None,
    rounds: Count = 5,
    share: Count = 1,
    bin: str | None = None,
    source: ModelOptions,
) -> dict[str, Figures]:
    """Measure the parts.

    part: measure this part alone.
    rounds: rounds of the part pairs.
    share: divide the size of the part templates by this.
    bin: verification .bin for the part bin.
    source: the model for --bin.
    """
    if bool(bin) != bool(source.model):
        raise ValueError("--bin FILE and --model RUN go together")
    works: dict[str, tuple[Any, ...]] = {
        "pairs": (bench_pairs, rounds),
        "templates": (bench_templates, share),
        "bin": (bench_bin, bin, source),
    }
    record = {}
    for name in [part] if part else works:
        record[name] = in_own_process(*works[name])
        print(name)
        show_figures(record[name])
    return record


main = command(run)
