"""Racial Faces in the Wild: the pair protocol in each of four groups, and how far apart the groups
are.

Folder as RFW ships: `txts/African/African_pairs.txt` and the images
`data/African/NAME/NAME_0001.jpg`; or one `.bin` a group, `African_test.bin`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.benchmarks import pairs
from eval.embed import Embed
from eval.report.result import Result, WorstPair

GROUPS = ("African", "Asian", "Caucasian", "Indian")


@dataclass(frozen=True)
class Rfw:
    name: str
    groups: dict[str, pairs.PairBenchmark]
    missing: str | None = None

    def run(self, embed: Embed, size: int) -> Result:
        """accuracy_GROUP each; `accuracy` and `accuracy_std` over groups; `spread` best minus
        worst; `error_ratio` worst error over best error (infinite where the best is perfect).
        """
        if self.missing:
            return Result(self.name, {}, skipped=self.missing)
        results = {group: benchmark.run(embed, size) for group, benchmark in self.groups.items()}
        accuracy = np.array([result.metrics["accuracy"] for result in results.values()])
        figures = {
            f"accuracy_{group}": float(a) for group, a in zip(results, accuracy, strict=True)
        }
        figures |= {
            f"accuracy_{group}_std": result.metrics["accuracy_std"]
            for group, result in results.items()
        }
        figures |= {"accuracy": float(accuracy.mean()), "accuracy_std": float(accuracy.std())}
        errors = 100 - accuracy
        figures["spread"] = float(np.ptp(accuracy))
        figures["error_ratio"] = (
            float(errors.max() / errors.min()) if errors.min() > 0 else float("inf")
        )
        worst: list[WorstPair] = [pair for result in results.values() for pair in result.worst[:6]]
        return Result(
            self.name,
            figures,
            settings={"protocol": "groups, ten folds each", "groups": ", ".join(results)},
            curves={
                f"{self.name} {group}": curve
                for group, r in results.items()
                for curve in r.curves.values()
            },
            worst=tuple(worst),
            notes=tuple(
                f"{group}: {note}" for group, result in results.items() for note in result.notes
            ),
        )


def build(*, name: str, root: str, mirror: bool = True, optional: bool = False) -> Rfw:
    """All four groups from one folder. A missing one is a FileNotFoundError, or with `optional`
    said in the result."""
    folder, groups = Path(root), {}
    try:
        for group in GROUPS:
            packed = folder / f"{group}_test.bin"
            if packed.is_file():
                groups[group] = pairs.build(name=group, bin=str(packed), mirror=mirror)
            else:
                listed, images = (
                    folder / "txts" / group / f"{group}_pairs.txt",
                    folder / "data" / group,
                )
                groups[group] = pairs.build(
                    name=group, pairs=str(listed), images=str(images), mirror=mirror
                )
    except FileNotFoundError as error:
        if not optional:
            raise FileNotFoundError(f"{name}: {error}") from None
        return Rfw(name, {}, str(error))
    return Rfw(name, groups)
