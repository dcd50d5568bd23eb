"""Verification on pairs by the ten-fold protocol of LFW, CFP, AgeDB, CALFW, CPLFW, VGG2, …

The embeddings of an image and of its mirror image are added and normalized. The threshold on the
squared distance is chosen on nine consecutive, unshuffled folds and applied to the tenth, as in
insightface's code for LFW's protocol.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from data.faces import find_missing_path
from data.options import Count, CountOrZero, PathText
from data.pairs.drawn import from_faces
from data.pairs.lists import (
    Pairs,
    fold_notes,
    from_bin,
    from_list,
    from_numbered,
    index_names,
    pairs_digest,
    read_pair_list,
)
from eval.benchmarks import Benchmark
from eval.embed import Embed, embed_views, mirror_setting
from eval.metrics import verification as metrics
from eval.metrics.threshold import threshold_at_far
from eval.report.result import Curve, Protocol, Result, Scores, WorstPair, histogram
from eval.stored import Stored
from eval.verdict import FAR

MOST_SCORES = 200_000  # pairs whose scores a result keeps: 1 MB
WORST = 12  # false accepts for the picture sheet, and as many false rejects
FARS = (1e-2, 1e-3, 1e-4)
DECISION = ("cosine", "cosine_low", "cosine_high", "false_same", "false_different")
PROTOCOL = Protocol(
    name="pairs",
    title="pairs, ten folds",
    columns={
        "accuracy": "accuracy %",
        "exact_accuracy": "exact threshold %",
        "accuracy_without_mirror": "without mirror %",
        "tar@0.01": "TAR@FAR 1e-2",
        "tar@0.001": "TAR@FAR 1e-3",
        "tar@0.0001": "TAR@FAR 1e-4",
        "auc": "AUC %",
        "eer": "EER %",
    },
    unlisted=(
        "threshold",
        "fold_tar@0.001",
        "fold_far@0.001",
        *(f"{key}@{FAR:g}" for key in DECISION),
    ),
    less_is_better=("eer",),
)


def build(
    stored: bool = False,
    *,
    name: str = "",
    pairs: PathText | None = None,
    images: PathText | None = None,
    bin: PathText | None = None,
    folder: PathText | None = None,
    faces: PathText | None = None,
    count: Count = 6000,
    seed: CountOrZero = 0,
    mirror: bool = True,
) -> Benchmark:
    """Ten-fold verification on pairs from one source: pairs with images, bin, folder, or faces.

    stored: whether the embeddings come from a file; then `pairs` needs no images.
    name: name in the results. Without it, the file name of the source is used.
    pairs: pair list as published for LFW, CALFW, CPLFW or SLLFW, or lines `path path label` with
        label 1 for one person and 0 for two.
    images: folder or uncompressed zip with the images of the pair list.
    bin: verification .bin of insightface.
    folder: folder with imgs/0.jpg, imgs/1.jpg, … (two per pair) and pair_label.npy.
    faces: any set of faces. Pairs are drawn from it.
    count: number of pairs to draw from `faces`, a multiple of 20.
    seed: seed of the pairs that are drawn from `faces`.
    mirror: add the embedding of the mirror image to that of the image.
    """
    sources: dict[str, tuple[str | None, Callable[[str], Pairs]]] = {
        "pairs": (pairs, lambda path: from_list(path, images or "")),
        "bin": (bin, from_bin),
        "folder": (folder, from_numbered),
        "faces": (faces, partial(from_faces, count=count, seed=seed)),
    }
    given = {key: (path, opened) for key, (path, opened) in sources.items() if path}
    goes_with_images = images or stored if pairs else not images
    if len(given) != 1 or not goes_with_images:
        raise ValueError(
            "give exactly one source: pairs together with images, bin, folder, or faces; "
            f"found {', '.join(given) or 'none'}{' with images' if images else ''}"
        )
    ((source, opened),) = given.values()
    for path in (source, images):
        if path and (missing := find_missing_path(path)):
            raise FileNotFoundError(f"{missing}: no such file or folder")
    name = name or Path(source).stem
    if pairs and not images:
        return partial(run_listed, name, pairs)
    return partial(run, name, partial(opened, source), mirror)


def run(
    name: str, open_pairs: Callable[[], Pairs], mirror: bool, embed: Embed, size: int
) -> Result:
    """Embed each image of the pairs once and score the pairs.

    The pairs are opened here, not in `build`: a benchmark that waits for the end of an epoch holds
    no images in memory.
    """
    pairs = open_pairs()
    used, rows = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    first, second = np.split(rows, 2)
    plain, mirrored = embed_views(embed, pairs.images, size, indices=used, mirror=mirror)
    result = score_pairs(
        name,
        plain if mirrored is None else plain + mirrored,
        first,
        second,
        pairs.same,
        digest=pairs.digest,
        notes=pairs.notes,
        worst_of=pairs,
        mirror=mirror_setting(embed, mirror),
    )
    if mirrored is not None:
        distances = metrics.pair_distances(plain, first, second)
        unmirrored = metrics.grid_accuracy(distances, pairs.same)
        result.metrics["accuracy_without_mirror"] = 100 * unmirrored.mean
        result.metrics["accuracy_without_mirror_std"] = 100 * unmirrored.std
    return result


def run_listed(name: str, path: str, embed: Embed, size: int) -> Result:
    """Score the pairs of a list by stored embeddings, without images."""
    assert isinstance(embed, Stored)
    listed, same = read_pair_list(path)
    names, first, second = index_names(listed)
    rows = np.array([embed.row(image) for image in names])
    return score_pairs(
        name,
        embed.embeddings,
        rows[first],
        rows[second],
        same,
        digest=pairs_digest(names, first, second, same),
        notes=fold_notes(same),
    )


def score_pairs(
    name: str,
    embeddings: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    same: np.ndarray,
    *,
    digest: str = "",
    notes: tuple[str, ...] = (),
    worst_of: Pairs | None = None,
    mirror: object = "as stored",
) -> Result:
    """Accuracy, TAR, AUC and EER of pairs of embeddings (N,D).

    first, second: int64 (P,), the rows of each pair. same: bool (P,), whether both show one person.
    digest: that of the pairs; without one, and for more than MOST_SCORES pairs, the result has no
    scores.
    worst_of: the pairs with their images, to show the worst mistakes.
    """
    distances = metrics.pair_distances(embeddings, first, second)
    grid = metrics.grid_accuracy(distances, same)
    exact = metrics.exact_accuracy(distances, same)
    threshold = np.median(grid.thresholds)
    figures = {
        "accuracy": 100 * grid.mean,
        "accuracy_std": 100 * grid.std,
        "exact_accuracy": 100 * exact.mean,
        "exact_accuracy_std": 100 * exact.std,
        "threshold": float(threshold),
    }
    kept = digest and len(same) <= MOST_SCORES
    cosines = 1 - distances / 2  # |a - b|² = 2 - 2 cos for unit vectors
    curves = {}
    if same.all() or not same.any():
        kind = "genuine" if same.all() else "impostors"
        note = f"all {len(same)} pairs are {kind}: no ROC, and the accuracy means nothing"
        notes = (*notes, note)
    else:
        curve = metrics.roc(-distances, same)
        curves[name] = Curve.thinned(curve)
        figures |= rates(curve, *metrics.fold_tar(distances, same, 1e-3))
        figures |= decision(cosines, same)
    return Result(
        name,
        PROTOCOL,
        figures,
        settings={
            "pairs": len(same),
            "genuine": int(same.sum()),
            "mirror": mirror,
            "fold_accuracy": [round(100 * float(x), 6) for x in grid.accuracy],
            "fold_threshold": [round(float(x), 6) for x in grid.thresholds],
        },
        curves=curves,
        histogram=histogram(cosines, same),
        scores={name: Scores(distances.astype(np.float32), same, digest)} if kept else {},
        worst=worst_pairs(worst_of, cosines, distances < threshold) if worst_of else (),
        notes=notes,
    )


def rates(curve: metrics.Roc, fold_tar: np.ndarray, fold_far: np.ndarray) -> dict[str, float]:
    """Figures of the whole ROC in percent, and `fold_*`, the means of `fold_tar` at FAR 1e-3."""
    return {
        **{f"tar@{far:g}": 100 * metrics.tar_at_far(curve, far) for far in FARS},
        "fold_tar@0.001": 100 * float(np.nanmean(fold_tar)),
        "fold_tar@0.001_std": 100 * float(np.nanstd(fold_tar)),
        "fold_far@0.001": 100 * float(np.nanmean(fold_far)),
        "auc": 100 * metrics.auc(curve),
        "eer": 100 * metrics.eer(curve),
    }


def decision(cosines: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """The cosine at FAR 1e-3 with its interval, and how often a decision by them is wrong, in %.

    `eval.verdict` reads these figures. They are missing where there are too few impostors.
    """
    found = threshold_at_far(cosines[~same], FAR)
    if found is None:
        return {}
    threshold, low, high = found
    wrong = 100 * np.mean(cosines[~same] > high), 100 * np.mean(cosines[same] < low)
    values = (threshold, low, high, *map(float, wrong))
    return {f"{key}@{FAR:g}": value for key, value in zip(DECISION, values, strict=True)}


def worst_pairs(pairs: Pairs, cosines: np.ndarray, accepted: np.ndarray) -> tuple[WorstPair, ...]:
    """The wrong decisions: the most similar impostors and the least similar genuine pairs."""
    accepts = np.flatnonzero(accepted & ~pairs.same)
    rejects = np.flatnonzero(~accepted & pairs.same)
    chosen = [
        *accepts[np.argsort(-cosines[accepts])][:WORST],
        *rejects[np.argsort(cosines[rejects])][:WORST],
    ]
    found = []
    for i in chosen:
        a, b = int(pairs.first[i]), int(pairs.second[i])
        names = pairs.images.describe(a), pairs.images.describe(b)
        images = pairs.images.read(a), pairs.images.read(b)
        found.append(WorstPair(images, names, float(cosines[i]), bool(pairs.same[i])))
    return tuple(found)
