"""What a cosine says about two faces, by the last evaluation of the model that computed it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.files import read_text
from eval.metrics.threshold import rate_at_most

FAR = 1e-3
Word = Literal["same", "different", "near the threshold"]


@dataclass(frozen=True)
class Evaluation:
    """The pairs of one evaluation, judged by the cosine.

    name: the set of pairs. mirror: whether the embedding of the mirror image was added. threshold,
    low, high: as `threshold_at_far` gives them for FAR 1e-3. impostors, genuine: how many pairs
    show two people, and one. false_same: share of impostors above `high`. false_different: share of
    genuine pairs below `low`.
    """

    name: str
    mirror: bool
    threshold: float
    low: float
    high: float
    impostors: int
    genuine: int
    false_same: float
    false_different: float

    def word(self, cosine: float) -> Word:
        """What the cosine says; between `low` and `high` it says neither."""
        if cosine > self.high:
            return "same"
        return "different" if cosine < self.low else "near the threshold"

    @property
    def false_same_at_most(self) -> float:
        """A bound of `false_same` that holds with a probability of 95 %."""
        return rate_at_most(round(self.false_same * self.impostors), self.impostors)

    @property
    def false_different_at_most(self) -> float:
        """A bound of `false_different` that holds with a probability of 95 %."""
        return rate_at_most(round(self.false_different * self.genuine), self.genuine)

    def threshold_line(self) -> str:
        """The threshold in words."""
        return (
            f"threshold {self.threshold:.4f} at a false accept rate of {FAR:g}, 90 % interval "
            f"{self.low:.4f} to {self.high:.4f}, from {self.impostors:,} pairs of two people in "
            f"{self.name}"
        )

    def facts(self) -> dict[str, Any]:
        """What `--json` says of it."""
        return {
            "name": self.name,
            "far": FAR,
            "threshold": self.threshold,
            "interval": [self.low, self.high],
            "impostor_pairs": self.impostors,
            "genuine_pairs": self.genuine,
            "false_same": self.false_same,
            "false_same_at_most": self.false_same_at_most,
            "false_different": self.false_different,
            "false_different_at_most": self.false_different_at_most,
        }

    def error_lines(self, word: Word) -> list[str]:
        """How often this word is wrong, in words."""
        same = (
            f'"same" is wrong for {_percent(self.false_same)} of the pairs of two people (at most '
            f"{_percent(self.false_same_at_most)} with a certainty of 95 %)"
        )
        if self.false_same_at_most > FAR:
            same += f"; {self.impostors:,} such pairs are too few to be sure of {_percent(FAR)}"
        different = (
            f'"different" is wrong for {_percent(self.false_different)} of the pairs of one person '
            f"(at most {_percent(self.false_different_at_most)} with a certainty of 95 %)"
        )
        return {"same": [same], "different": [different]}.get(word, [same, different])


def read_evaluation(folder: Path) -> tuple[Evaluation | None, str]:
    """The evaluation in `folder`/results.json with the most impostor pairs, or why there is none.

    ValueError for a file that is damaged.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None, f"{folder} holds no results.json; python -m eval pairs writes one with --out"
    try:
        results = json.loads(read_text(path))["results"]
        found = [one for result in results if (one := _evaluation(result))]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path}: damaged; remove it, or write it anew with python -m eval pairs --out {folder}"
        ) from None
    if not found:
        return None, (
            f"{path} has no threshold at a false accept rate of {FAR:g}: that needs 1,000 pairs of "
            f"two people; python -m eval pairs writes it with --out {folder}"
        )
    return max(found, key=lambda one: one.impostors), ""


def _evaluation(result: Mapping[str, Any]) -> Evaluation | None:
    figures, settings = result["metrics"], result["settings"]
    if result["protocol"] != "pairs" or figures.get(f"cosine@{FAR:g}") is None:
        return None
    if not isinstance(settings["mirror"], bool):  # stored embeddings: made nobody knows how
        return None
    return Evaluation(
        name=str(result["name"]),
        mirror=settings["mirror"],
        threshold=float(figures[f"cosine@{FAR:g}"]),
        low=float(figures[f"cosine_low@{FAR:g}"]),
        high=float(figures[f"cosine_high@{FAR:g}"]),
        impostors=int(settings["pairs"]) - int(settings["genuine"]),
        genuine=int(settings["genuine"]),
        false_same=float(figures[f"false_same@{FAR:g}"]) / 100,
        false_different=float(figures[f"false_different@{FAR:g}"]) / 100,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
