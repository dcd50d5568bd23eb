"""Verification on pairs by the standard ten-fold protocol: LFW, CFP, AgeDB, CALFW, CPLFW, VGG2,
XQLFW, SLLFW, RFW, ...

Embedding of the image plus that of its mirror image, normalized; squared distance; the threshold is
chosen on nine consecutive, unshuffled folds and applied to the tenth (LFW's protocol as
insightface's code has it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.faces import find_missing_path
from data.options import PathText
from data.pairs.drawn import from_faces
from data.pairs.lists import Pairs, from_bin, from_list, from_numbered
from eval.embed import Embed, embed_views, mirror_setting
from eval.metrics import verification as metrics
from eval.report.result import Curve, Result, WorstPair, histogram

WORST = 12  # false accepts and false rejects kept for the picture sheet, each
FARS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class PairBenchmark:
    """`open_pairs` reads the lists when the benchmark runs, so that a benchmark in waiting holds no
    images."""

    name: str
    open_pairs: Callable[[], Pairs]
    mirror: bool = True
    missing: str | None = None

    def run(self, embed: Embed, size: int) -> Result:
        """Embeds each image of the pairs once (S×S pixels) and scores them."""
        if self.missing:
            return Result(self.name, {}, skipped=self.missing)
        pairs = self.open_pairs()
        used, rows = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
        first, second = np.split(rows, 2)
        plain, mirrored = embed_views(embed, pairs.images, size, indices=used, mirror=self.mirror)
        embeddings = plain if mirrored is None else plain + mirrored
        result = score_pairs(
            self.name, embeddings, first, second, pairs.same,
            notes=pairs.notes, worst_of=pairs, mirror=mirror_setting(embed, self.mirror),
        )  # fmt: skip
        if mirrored is not None:
            distances = metrics.pair_distances(plain, first, second)
            unmirrored = metrics.grid_accuracy(distances, pairs.same)
            result.metrics["accuracy_without_mirror"] = 100 * unmirrored.mean
            result.metrics["accuracy_without_mirror_std"] = 100 * unmirrored.std
        return result


def score_pairs(
    name: str,
    embeddings: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    same: np.ndarray,
    *,
    notes: tuple[str, ...] = (),
    worst_of: Pairs | None = None,
    mirror: object = "as stored",
) -> Result:
    """The protocol from embeddings (N,D): rows first, second int64 (P,) and same bool (P,) ->
    accuracy, TAR, AUC, EER.

    worst_of: where to read the pictures of the worst mistakes, if they are wanted.
    """
    distances = metrics.pair_distances(embeddings, first, second)
    grid = metrics.grid_accuracy(distances, same)
    exact = metrics.exact_accuracy(distances, same)
    figures = {
        "accuracy": 100 * grid.mean,
        "accuracy_std": 100 * grid.std,
        "exact_accuracy": 100 * exact.mean,
        "exact_accuracy_std": 100 * exact.std,
        "threshold": float(np.median(grid.thresholds)),
    }
    curves = {}
    if same.all() or not same.any():
        kind = "genuine" if same.all() else "impostors"
        notes = (
            *notes,
            f"all {len(same)} pairs are {kind}: no ROC, and no accuracy that means anything",
        )
    else:
        curve = metrics.roc(-distances, same)
        curves[name] = Curve.thinned(curve)
        figures |= rates(curve, *metrics.fold_tar(distances, same, 1e-3))
    scores = 1 - distances / 2
    chosen = np.median(grid.thresholds)
    return Result(
        name,
        figures,
        settings={
            "protocol": "pairs, ten folds",
            "pairs": len(same),
            "genuine": int(same.sum()),
            "mirror": mirror,
            "fold_accuracy": [round(100 * float(x), 6) for x in grid.accuracy],
            "fold_threshold": [round(float(x), 6) for x in grid.thresholds],
        },
        curves=curves,
        histogram=histogram(scores, same),
        worst=() if worst_of is None else _worst(worst_of, scores, distances < chosen),
        notes=notes,
    )


def rates(curve: metrics.Roc, fold_tar: np.ndarray, fold_far: np.ndarray) -> dict[str, float]:
    """Figures of the whole ROC, and of a threshold for FAR 1e-3 chosen on nine folds and applied to
    the tenth, in %."""
    return {
        **{f"tar@{rate:g}": 100 * metrics.tar_at_far(curve, rate) for rate in FARS},
        "fold_tar@0.001": 100 * float(np.nanmean(fold_tar)),
        "fold_tar@0.001_std": 100 * float(np.nanstd(fold_tar)),
        "fold_far@0.001": 100 * float(np.nanmean(fold_far)),
        "auc": 100 * metrics.auc(curve),
        "eer": 100 * metrics.eer(curve),
    }


def _worst(pairs: Pairs, scores: np.ndarray, accepted: np.ndarray) -> tuple[WorstPair, ...]:
    """The impostors most alike and the genuine pairs least alike among the wrong decisions at the
    chosen threshold."""
    accepts = np.flatnonzero(accepted & ~pairs.same)
    rejects = np.flatnonzero(~accepted & pairs.same)
    chosen = [
        *accepts[np.argsort(-scores[accepts])][:WORST],
        *rejects[np.argsort(scores[rejects])][:WORST],
    ]
    found = []
    for i in chosen:
        a, b = int(pairs.first[i]), int(pairs.second[i])
        names = pairs.images.describe(a), pairs.images.describe(b)
        images = pairs.images.read(a), pairs.images.read(b)
        found.append(WorstPair(images, names, float(scores[i]), bool(pairs.same[i])))
    return tuple(found)


def build(
    *,
    name: str,
    pairs: PathText | None = None,
    images: PathText | None = None,
    bin: PathText | None = None,
    folder: PathText | None = None,
    faces: PathText | None = None,
    count: int = 6000,
    seed: int = 0,
    mirror: bool = True,
    optional: bool = False,
) -> PairBenchmark:
    """A pair benchmark from one source: `pairs` with `images` (folder or zip), `bin`, `folder`
    (imgs/N.jpg and pair_label.npy) or `faces` (`count` pairs drawn from any set of faces).

    Missing files are a FileNotFoundError now, not after the training; with `optional` they are said
    in the result.
    """
    given = [
        key
        for key, value in (("pairs", pairs), ("bin", bin), ("folder", folder), ("faces", faces))
        if value
    ]
    if len(given) != 1 or bool(pairs) != bool(images):
        raise ValueError(
            f"benchmark {name}: give one source, of pairs with images, bin, folder, or faces; found {given or 'none'}"
        )
    missing = _missing([path for path in (pairs, images, bin, folder, faces) if path])
    if missing and not optional:
        raise FileNotFoundError(
            f"benchmark {name}: {missing}; correct the path or mark the benchmark optional: true"
        )
    if bin:
        return PairBenchmark(name, lambda: from_bin(bin), mirror, missing)
    if folder:
        return PairBenchmark(name, lambda: from_numbered(folder), mirror, missing)
    if faces:
        return PairBenchmark(
            name, lambda: from_faces(faces, count=count, seed=seed), mirror, missing
        )
    assert pairs is not None
    assert images is not None
    return PairBenchmark(name, lambda: from_list(pairs, images), mirror, missing)


def _missing(paths: list[str]) -> str | None:
    absent = next((missing for path in paths if (missing := find_missing_path(path))), None)
    return f"{absent}: no such file or folder" if absent else None
