"""python -m scripts.bench.eval [--json] [--bin FILE --model RUN]: the protocols beside literal
loops, time and memory.

pairs      6,000 pairs of 512-d embeddings: distances, all figures; literal: distances in plain
numpy, then
           400 thresholds × 10 folds
templates  IJB-C's size: 469,375 images, 23,124 templates, 15,658,489 pairs; literal: one template,
then one batch of
           pairs at a time, on a tenth of it (its template loop grows with templates × images: a
           tenth flatters it)
bin        a 6,000-pair .bin of drawn JPEGs through a model of no size, or FILE through the model of
RUN: peak memory
           above what was there before

Each part runs in a process of its own, so that its peak memory is its own. Alternating A/B,
medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--part", choices=PARTS, help="one part alone, in this process")
    parser.add_argument("--bin", help="verification .bin for the part bin, with --model")
    parser.add_argument("--model", help="run folder or model.pt for the part bin, with --bin")
    args = parser.parse_args()
    if bool(args.bin) != bool(args.model):
        parser.error("--bin FILE and --model RUN go together")
    if args.part:
        given = (args.bin, args.model) if args.part == "bin" and args.bin else ()
        print(json.dumps(PARTS[args.part](*given)))
        return 0
    record = {}
    for part in PARTS:
        command = [sys.executable, __file__, "--part", part]
        command += ["--bin", args.bin, "--model", args.model] if args.bin else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        record[part] = json.loads(output.splitlines()[-1])
        print(part, *(f"{key} {value}" for key, value in record[part].items()), sep="\n  ")
    if args.json:
        print(json.dumps(record))
    return 0


def cpu_seconds(run: Callable[[], object]) -> float:
    """Time of this thread on a core: what is left of a comparison when others use the machine."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def bench_pairs() -> dict[str, object]:
    from eval.benchmarks.pairs import score_pairs
    from eval.metrics.verification import grid_accuracy, pair_distances

    rng = np.random.default_rng(0)
    same = np.tile(np.repeat([True, False], 300), 10)
    first = rng.normal(size=(6000, 512))
    second = np.where(same[:, None], first, rng.normal(size=(6000, 512))) + 4 * rng.normal(
        size=(6000, 512)
    )
    embeddings = np.stack([first, second], 1).reshape(12000, 512).astype(np.float32)
    rows = np.arange(12000)

    def ours() -> tuple[float, float]:
        metrics = score_pairs("bench", embeddings, rows[0::2], rows[1::2], same).metrics
        return metrics["accuracy"], metrics["accuracy_std"]

    def grid_only() -> tuple[float, float]:
        found = grid_accuracy(pair_distances(embeddings, rows[0::2], rows[1::2]), same)
        return 100 * found.mean, 100 * found.std

    def literal_distances() -> np.ndarray:
        unit = embeddings.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        return np.sum(np.square(unit[0::2] - unit[1::2]), 1)

    def literal_loop(distances: np.ndarray) -> tuple[float, float]:
        folds, accuracy = np.arange(6000) // 600, []
        for k in range(10):
            train, test = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
            found = [
                literal_accuracy(distances[train], same[train], t) for t in np.arange(0, 4, 0.01)
            ]
            # its ROC, as published
            [literal_accuracy(distances[test], same[test], t) for t in np.arange(0, 4, 0.01)]
            best = np.arange(0, 4, 0.01)[int(np.argmax(found))]
            accuracy.append(literal_accuracy(distances[test], same[test], best))
        return 100 * float(np.mean(accuracy)), 100 * float(np.std(accuracy))

    def literal_with_rate() -> tuple[float, float]:
        """The peers' whole evaluate(): the loop above, and 4,000 thresholds × 10 folds for the TAR
        at FAR 1e-3."""
        distances, folds = literal_distances(), np.arange(6000) // 600
        for k in range(10):
            train = np.flatnonzero(folds != k)
            for threshold in np.arange(0, 4, 0.001):
                literal_accuracy(distances[train], same[train], threshold)
        return literal_loop(distances)

    distances = literal_distances()
    runs = (
        ours, grid_only, lambda: grid_accuracy(distances, same),
        lambda: literal_loop(literal_distances()), lambda: literal_loop(distances), literal_with_rate,
    )  # fmt: skip
    # of each in a round: a short one right after a long one finds the caches cold
    calls = (
        9,
        9,
        9,
        1,
        1,
        1,
    )
    times = [
        [
            statistics.median(cpu_seconds(run) for _ in range(n))
            for run, n in zip(runs, calls, strict=True)
        ]
        for _ in range(5)
    ]
    wall = [seconds(ours) for _ in range(25)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    all_figures, from_embeddings, grid, literal_from_embeddings, loop, evaluate = medians
    return {
        "all_figures_wall_ms": round(1e3 * statistics.median(wall), 2),
        "all_figures_wall_ms_best": round(1e3 * min(wall), 2),
        "all_figures_cpu_ms": round(1e3 * all_figures, 2),
        "accuracy_from_embeddings_cpu_ms": round(1e3 * from_embeddings, 2),
        "accuracy_from_distances_cpu_ms": round(1e3 * grid, 3),
        "literal_from_embeddings_cpu_ms": round(1e3 * literal_from_embeddings, 1),
        "literal_from_distances_cpu_ms": round(1e3 * loop, 1),
        "literal_evaluate_cpu_ms": round(1e3 * evaluate, 1),
        "ratio_from_embeddings": round(literal_from_embeddings / from_embeddings, 1),
        "ratio_from_distances": round(loop / grid, 1),
        "ratio_evaluate": round(evaluate / all_figures, 1),
        "accuracy": ours()[0],
        "same_figures": ours() == literal_loop(distances) == grid_only(),
    }


def literal_accuracy(distances: np.ndarray, same: np.ndarray, threshold: float) -> float:
    accepted = np.less(distances, threshold)
    tp = np.sum(np.logical_and(accepted, same))
    np.sum(np.logical_and(accepted, np.logical_not(same)))
    tn = np.sum(np.logical_and(np.logical_not(accepted), np.logical_not(same)))
    np.sum(np.logical_and(np.logical_not(accepted), same))
    return float(tp + tn) / distances.size


def draw_templates(share: int) -> dict[str, np.ndarray]:
    """IJB-C's numbers divided by `share`: random but correlated embeddings of 3,531 people's
    templates."""
    rng = np.random.default_rng(0)
    images, templates, pairs, genuine = (n // share for n in (469_375, 23_124, 15_658_489, 19_557))
    template = np.append(np.arange(templates), rng.integers(0, templates, images - templates))
    subject = rng.integers(0, 3531 // share, templates)
    people = rng.standard_normal((3531 // share, 512), dtype=np.float32)
    embeddings = np.empty((images, 512), np.float32)
    for start in range(0, images, 10_000):
        here = template[start : start + 10_000]
        embeddings[start : start + 10_000] = people[subject[here]]
        embeddings[start : start + 10_000] += 9 * rng.standard_normal(
            (len(here), 512), dtype=np.float32
        )
    first, second = rng.integers(0, templates, (2, pairs))
    mates = np.argsort(subject, kind="stable")
    at = rng.integers(1, templates, genuine)
    first[:genuine], second[:genuine] = mates[at - 1], mates[at]
    order = rng.permutation(pairs)
    first, second = first[order], second[order]
    return {
        "embeddings": embeddings, "template": template, "media": rng.integers(0, images // 2, images),
        "detector": rng.uniform(0.5, 1, images).astype(np.float32), "first": first, "second": second,
        "same": subject[first] == subject[second],
    }  # fmt: skip


def bench_templates() -> dict[str, object]:
    from eval.metrics.templates import pair_scores, pool_templates
    from eval.metrics.verification import nearest_tar, roc, tar_at_far

    def ours(data: dict[str, np.ndarray]) -> tuple[list[float], dict[str, float]]:
        stamps = [time.perf_counter()]
        _, vectors = pool_templates(
            data["embeddings"], data["template"], data["media"], detector=data["detector"]
        )
        stamps.append(time.perf_counter())
        scores = pair_scores(vectors, data["first"], data["second"])
        stamps.append(time.perf_counter())
        curve = roc(scores, data["same"])
        table = [*nearest_tar(curve, FARS), *(tar_at_far(curve, far) for far in FARS)]
        stamps.append(time.perf_counter())
        spent = dict(
            zip(("pooling", "pairs", "table"), np.diff(stamps).round(2).tolist(), strict=True)
        )
        return table, {**spent, "all": round(stamps[-1] - stamps[0], 2)}

    whole = draw_templates(1)
    before = resident_mb()
    cpu = time.process_time()
    table, spent = ours(whole)
    cpu = time.process_time() - cpu
    above = max(peak_mb() - before, 0)
    tenth = draw_templates(10)
    fast, slow, tables = [], [], []
    for _ in range(3):
        fast.append(seconds(lambda: tables.append(ours(tenth)[0])))
        slow.append(seconds(lambda: tables.append(literal_table(tenth))))
    return {
        "seconds": spent,
        "cpu_seconds": round(cpu, 2),
        "input_mb": round(sum(array.nbytes for array in whole.values()) / 1e6),
        "peak_mb_above_inputs": round(above),
        "tenth_seconds": round(statistics.median(fast), 2),
        "tenth_literal_seconds": round(statistics.median(slow), 2),
        "tenth_ratio": round(statistics.median(b / a for a, b in zip(fast, slow, strict=True)), 1),
        "tar@1e-4": [round(table[2], 5), round(table[8], 5)],
        "largest_difference_from_literal": float(np.abs(np.array(tables[0][:6]) - tables[1]).max()),
    }


def literal_table(data: dict[str, np.ndarray]) -> list[float]:
    """Pooling template by template, cosines by gathering both sides, scikit-learn's ROC: as the
    peers do it."""
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
        part = slice(start, start + 100_000)
        scores[part] = np.sum(pooled[data["first"][part]] * pooled[data["second"][part]], -1)
    far, tar, _ = roc_curve(data["same"], scores)
    far, tar = np.flipud(far), np.flipud(tar)
    return [float(tar[np.argmin(np.abs(far - wanted))]) for wanted in FARS]


def bench_bin(path: str | None = None, model: str | None = None) -> dict[str, object]:
    import torch

    from eval.benchmarks.pairs import build
    from eval.embed import Embed
    from recognition.embedder import load_embedder

    def pool(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.float(), 8).flatten(1)[:, :512]

    embed: Embed
    with tempfile.TemporaryDirectory() as folder:
        if path and model:
            embed, size = load_embedder(model, "cpu")
        else:
            path, embed, size = draw_bin(f"{folder}/set.bin"), pool, 112
            pool(torch.zeros(64, 3, size, size))  # torch's own buffers belong to the model
        benchmark = build(name="bin", bin=path)
        before = resident_mb()
        start = time.perf_counter()
        result = benchmark(embed, size)
        spent = time.perf_counter() - start
        file_mb = Path(path).stat().st_size / 1e6
    return {
        "pairs": result.settings["pairs"],
        "file_mb": round(file_mb),
        "accuracy": round(result.metrics["accuracy"], 6),
        "seconds": round(spent, 2),
        "peak_mb_above_model": round(peak_mb() - before),
    }


def draw_bin(path: str) -> str:
    """Writes 6,000 pairs of noise, 8 kB an image; no two files are equal, as a pickle holds those
    once."""
    import cv2

    from data.pairs.verification_bin import write_bin

    rng = np.random.default_rng(0)
    noise = [
        cv2.resize(rng.integers(0, 256, (28, 28, 3), np.uint8), (112, 112)) for _ in range(200)
    ]
    encoded = [
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for image in noise
    ]
    images = [encoded[i % 200] + i.to_bytes(2, "little") for i in range(12_000)]
    write_bin(path, images, np.tile([True, False], 3000))
    return path


PARTS: dict[str, Callable[..., dict[str, object]]] = {
    "pairs": bench_pairs, "templates": bench_templates, "bin": bench_bin,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
