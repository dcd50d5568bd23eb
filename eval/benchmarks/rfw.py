"""Racial Faces in the Wild: the pair protocol in each of four groups, and how much they differ.

The set is a folder as RFW distributes it (`txts/African/African_pairs.txt` and the images
`data/African/NAME/NAME_0001.jpg`), or a folder with one `.bin` per group, `African_test.bin`.
"""

from functools import partial
from pathlib import Path

import numpy as np

from data.options import PathText
from eval.benchmarks import Benchmark, pairs
from eval.embed import Embed
from eval.report.result import Curve, Protocol, Result, Scores

GROUPS = ("African", "Asian", "Caucasian", "Indian")
WORST = 6  # pairs of each group for the picture sheet
PROTOCOL = Protocol(
    name="groups",
    title="groups, ten folds each",
    columns={
        **{f"accuracy_{group}": f"{group} %" for group in GROUPS},
        "accuracy": "mean ± std over groups %",
        "spread": "best − worst",
        "error_ratio": "worst / best error",
    },
    less_is_better=("spread", "error_ratio"),
)


def build(*, name: str = "rfw", root: PathText, mirror: bool = True) -> Benchmark:
    """Racial Faces in the Wild, all four groups.

    name: name in the results.
    root: folder with txts/ and data/, or with one GROUP_test.bin per group.
    mirror: add the embedding of the mirror image to that of the image.
    """
    groups: dict[str, Benchmark] = {}
    for group in GROUPS:
        packed = Path(root, f"{group}_test.bin")
        if packed.is_file():
            groups[group] = pairs.build(name=group, bin=str(packed), mirror=mirror)
        else:
            listed = Path(root, "txts", group, f"{group}_pairs.txt")
            images = Path(root, "data", group)
            groups[group] = pairs.build(
                name=group, pairs=str(listed), images=str(images), mirror=mirror
            )
    return partial(run, name, groups)


def run(name: str, groups: dict[str, Benchmark], embed: Embed, size: int) -> Result:
    """`accuracy_GROUP` of each group, and their mean and deviation `accuracy`, `accuracy_std`.

    `spread` is the best accuracy minus the worst. `error_ratio` is the largest error divided by
    the smallest, infinite where the smallest is 0.
    """
    results = {group: benchmark(embed, size) for group, benchmark in groups.items()}
    figures: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    scores: dict[str, Scores] = {}
    for group, result in results.items():
        figures[f"accuracy_{group}"] = result.metrics["accuracy"]
        figures[f"accuracy_{group}_std"] = result.metrics["accuracy_std"]
        curves |= {f"{name} {group}": curve for curve in result.curves.values()}
        scores |= {f"{name} {group}": pairs for pairs in result.scores.values()}
    accuracy = np.array([result.metrics["accuracy"] for result in results.values()])
    errors = 100 - accuracy
    figures |= {
        "accuracy": float(accuracy.mean()),
        "accuracy_std": float(accuracy.std()),
        "spread": float(np.ptp(accuracy)),
        "error_ratio": float(errors.max() / errors.min()) if errors.min() > 0 else float("inf"),
    }
    return Result(
        name,
        PROTOCOL,
        figures,
        settings={
            "groups": ", ".join(results),
            "group_pairs": [result.settings["pairs"] for result in results.values()],
        },
        curves=curves,
        scores=scores,
        worst=tuple(pair for result in results.values() for pair in result.worst[:WORST]),
        notes=tuple(
            f"{group}: {note}" for group, result in results.items() for note in result.notes
        ),
    )
