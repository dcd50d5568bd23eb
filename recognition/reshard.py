"""Hand the rows of a sharded classifier to another number of processes than the one that saved them."""

from __future__ import annotations

from typing import Any

import torch

from recognition.classifiers import Classifier

# state of a classifier that has one row a centre; the rest is equal on every rank
_BY_ROW = ("weight", "velocity", "square", "times")


def own_share(saved: list[dict[str, Any]], classifier: Classifier) -> dict[str, Any]:
    """This rank's {"classifier", "optimizer"} state out of those of all the ranks that saved it, in rank order.

    classifier: the one to be loaded. Its `rows`, the range of classes it holds, say which of the saved centres are its
    own; a classifier without `rows` is the same on every rank. Where the saved rows are too few or too many, loading
    them raises torch's size mismatch: nothing is started anew in silence.
    """
    rows = getattr(classifier, "rows", None)
    if rows is None:
        return saved[0]
    local = classifier.state_dict()
    centres_a_class = len(local["weight"]) // len(rows)
    held = [len(part["classifier"]["weight"]) for part in saved]
    mine = slice(rows.start * centres_a_class, rows.stop * centres_a_class)

    def own(values: list[Any]) -> Any:
        by_row = all(torch.is_tensor(v) and v.ndim and len(v) == n for v, n in zip(values, held, strict=True))
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
