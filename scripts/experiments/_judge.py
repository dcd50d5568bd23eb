"""Figures of a model on pairs, with the decision on every pair, for the result file of a run."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.pairs.lists import Pairs
from eval.benchmarks.pairs import score_pairs
from eval.embed import embed_faces
from eval.metrics import verification as metrics
from recognition.models.load import load_model


def judge_model(model: Path, name: str, pairs: Pairs, figures: Sequence[str]) -> dict[str, Any]:
    """What `judge` gives for the model of a run folder."""
    network = load_model(model, device="cpu")
    embeddings = embed_faces(network, pairs.images, network.size)
    return judge(name, embeddings, pairs.first, pairs.second, pairs.same, figures)


def judge(
    name: str,
    embeddings: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    same: np.ndarray,
    figures: Sequence[str],
) -> dict[str, Any]:
    """The named figures of `score_pairs`, rounded to four digits, and what `packed` gives.

    embeddings: float32 (N, D), as `embed_faces` gives them. first, second: int64 (P,), the rows of
        each pair. same: bool (P,), whether both show one person.
    """
    found = score_pairs(name, embeddings, first, second, same).metrics
    distances = metrics.pair_distances(embeddings, first, second)
    kept = {key: round(found[key], 4) for key in figures}
    return {**kept, **packed(metrics.right_decisions(distances, same))}


def packed(right: np.ndarray) -> dict[str, Any]:
    """Which pairs were judged correctly, bool (P,): `pairs`, and in base 64 `right`, a bit each."""
    text = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {"pairs": len(right), "right": text}


def right_of(figures: Mapping[str, Any]) -> np.ndarray:
    """Which pairs were judged correctly, bool (P,), from what `packed` gave.

    Older files have no `pairs`; the number of theirs is a multiple of eight.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(figures["right"]), np.uint8))
    return bits[: figures.get("pairs", len(bits))].astype(bool)
