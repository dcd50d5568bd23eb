"""Rows saved by K processes reach K' processes unchanged and in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from recognition.classifiers import Classifier
from recognition.classifiers._rows import own_share

CLASSES, CENTERS_PER_CLASS = 10, 2
WHOLE = torch.arange(CLASSES * CENTERS_PER_CLASS * 3.0).view(-1, 3)


def _rows(rank: int, world: int) -> range:
    return range(rank * CLASSES // world, (rank + 1) * CLASSES // world)


def _slice(rows: range) -> torch.Tensor:
    return WHOLE[rows.start * CENTERS_PER_CLASS : rows.stop * CENTERS_PER_CLASS]


def _saved(world: int) -> list[dict[str, Any]]:
    parts = [_slice(_rows(rank, world)) for rank in range(world)]
    return [
        {
            "classifier": {
                "weight": part,
                "velocity": -part,
                "times": part[:, 0],
                "draws": torch.tensor(7),
            },
            "optimizer": {5: {"momentum_buffer": 2 * part, "step": torch.tensor(3.0)}},
        }
        for part in parts
    ]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (4, 3), (2, 4)])
def test_every_rank_gets_its_rows(before: int, after: int) -> None:
    for rank in range(after):
        rows = _rows(rank, after)
        local = {"weight": torch.zeros(len(rows) * CENTERS_PER_CLASS, 3)}
        stand_in = SimpleNamespace(
            rows=rows,
            row_state=("weight", "velocity", "times", "not saved"),
            state_dict=lambda local=local: local,
        )
        classifier = cast(Classifier, stand_in)
        share = own_share(_saved(before), classifier)
        assert torch.equal(share["classifier"]["weight"], _slice(rows))
        assert torch.equal(share["classifier"]["velocity"], -_slice(rows))
        assert torch.equal(share["classifier"]["times"], _slice(rows)[:, 0])
        assert int(share["classifier"]["draws"]) == 7
        assert torch.equal(share["optimizer"][5]["momentum_buffer"], 2 * _slice(rows))
        assert float(share["optimizer"][5]["step"]) == 3


def test_state_that_is_equal_on_every_rank_is_not_divided() -> None:
    saved = [{"classifier": {"pool": torch.ones(4)}, "optimizer": {}}] * 2
    assert own_share(saved, cast(Classifier, SimpleNamespace(row_state=()))) is saved[0]
