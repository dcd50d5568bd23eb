"""The centers of a classifier: which rows a rank holds and how they start. Independent of the
number of ranks."""

from __future__ import annotations

from typing import Any

import torch

from recognition.classifiers import Classifier
from recognition.distributed import Ranks
from recognition.seeds import generator

BLOCK = 1 << 14  # rows drawn from one generator: a rank draws only the blocks that it holds


def shard(classes: int, ranks: Ranks) -> range:
    """Global class numbers whose centers this rank holds: [floor(rank C / world), floor((rank + 1)
    C / world))."""
    if classes < 2 or classes < ranks.world:
        raise ValueError(
            f"{classes} classes over {ranks.world} ranks: expected at least 2 classes, and one a rank"
        )
    return range(ranks.rank * classes // ranks.world, (ranks.rank + 1) * classes // ranks.world)


def initial_centers(rows: range, embedding: int, *, seed: int, std: float = 0.01) -> torch.Tensor:
    """float32 (len(rows), embedding) from N(0, std²): row r is the same whoever holds it."""
    centers = torch.empty(len(rows), embedding)
    for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
        drawn = torch.empty(BLOCK, embedding).normal_(0, std, generator=generator(seed, block))
        first, last = max(rows.start, block * BLOCK), min(rows.stop, (block + 1) * BLOCK)
        centers[first - rows.start : last - rows.start] = drawn[
            first - block * BLOCK : last - block * BLOCK
        ]
    return centers


def number_type(key: str, name: str) -> torch.dtype:
    """torch.float32 or torch.bfloat16 by name; ValueError names the key."""
    check_choice(key, name, ("float32", "bfloat16"))
    return torch.float32 if name == "float32" else torch.bfloat16


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError that names the key unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{key} {value!r}: expected one of {', '.join(choices)}")


_BY_ROW = ("weight", "velocity", "square", "times")


def own_share(saved: list[dict[str, Any]], classifier: Classifier) -> dict[str, Any]:
    """This rank's {"classifier", "optimizer"} state out of those of all the ranks that saved it, in
    rank order.

    classifier: the one to be loaded. Its `rows`, the range of classes it holds, say which of the
    saved centers are its own; a classifier without `rows` is the same on every rank. Where the
    saved rows are too few or too many, loading them raises torch's size mismatch: nothing is
    started anew in silence.
    """
    rows = getattr(classifier, "rows", None)
    if rows is None:
        return saved[0]
    local = classifier.state_dict()
    centers_a_class = len(local["weight"]) // len(rows)
    held = [len(part["classifier"]["weight"]) for part in saved]
    mine = slice(rows.start * centers_a_class, rows.stop * centers_a_class)

    def own(values: list[Any]) -> Any:
        by_row = all(
            torch.is_tensor(v) and v.ndim and len(v) == n for v, n in zip(values, held, strict=True)
        )
        return torch.cat(values)[mine] if by_row else values[0]

    state = dict(saved[0]["classifier"])
    for name in _BY_ROW:
        if name in state:
            state[name] = own([part["classifier"][name] for part in saved])
    optimizer = {
        index: {name: own([part["optimizer"][index][name] for part in saved]) for name in values}
        for index, values in saved[0]["optimizer"].items()
    }
    return {"classifier": state, "optimizer": optimizer}
