"""Which rows of the centers a rank holds, and how they start.

A new center depends only on its class and the seed, never on the number of ranks.
"""

from typing import Any

import torch

from recognition.classifiers import Classifier
from recognition.distributed import Ranks
from recognition.seeds import generator

BLOCK = 1 << 14  # rows per generator: a rank draws only the blocks of which it holds a row


def shard(classes: int, ranks: Ranks) -> range:
    """The classes whose centers this rank holds, of C classes in all.

    They are the numbers from floor(rank C / world) up to floor((rank + 1) C / world).
    """
    if classes < 2 or classes < ranks.world:
        raise ValueError(
            f"{classes} classes on {ranks.world} ranks: expected 2 or more, and one per rank"
        )
    return range(ranks.rank * classes // ranks.world, (ranks.rank + 1) * classes // ranks.world)


def initial_centers(rows: range, embedding: int, *, seed: int, std: float = 0.01) -> torch.Tensor:
    """float32 (len(rows), embedding) from N(0, std²): row r is the same on every rank."""
    centers = torch.empty(len(rows), embedding)
    for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
        drawn = torch.empty(BLOCK, embedding).normal_(0, std, generator=generator(seed, block))

        # This rank holds the rows first … last - 1 of the block.
        begin = block * BLOCK
        first, last = max(rows.start, begin), min(rows.stop, begin + BLOCK)
        centers[first - rows.start : last - rows.start] = drawn[first - begin : last - begin]
    return centers


def own_share(saved: list[dict[str, Any]], classifier: Classifier) -> dict[str, Any]:
    """This rank's {"classifier", "optimizer"} state, after a run on another number of ranks.

    saved: the states of that run's ranks, in order. classifier: the one to be loaded. Its
    `row_state` says what is divided among the ranks, and its `rows` which of the saved rows belong
    to this rank. All other state is equal on every rank. Where the saved rows are too few or too
    many, loading them raises torch's size mismatch: no center silently starts again.
    """
    if not classifier.row_state:
        return saved[0]
    name, rows = classifier.row_state[0], classifier.rows
    per_class = len(classifier.state_dict()[name]) // len(rows)
    mine = slice(rows.start * per_class, rows.stop * per_class)
    counts = [len(state["classifier"][name]) for state in saved]

    def of_center(values: list[Any]) -> Any:
        """This rank's part of one entry of the optimizer's state.

        Some entries have a row per center; some are one number, such as Adam's step.
        """
        has_rows = all(
            torch.is_tensor(value) and value.ndim and len(value) == count
            for value, count in zip(values, counts, strict=True)
        )
        return torch.cat(values)[mine] if has_rows else values[0]

    divided = {
        name: torch.cat([state["classifier"][name] for state in saved])[mine]
        for name in classifier.row_state
        if name in saved[0]["classifier"]
    }
    optimizer = {
        index: {
            name: of_center([state["optimizer"][index][name] for state in saved]) for name in values
        }
        for index, values in saved[0]["optimizer"].items()
    }
    return {"classifier": {**saved[0]["classifier"], **divided}, "optimizer": optimizer}
