"""The published F²C pool in plain Python: a reference for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Published:
    """F²C's pool, one sample at a time. order: identities from least to most recently used."""

    size: int
    order: list[int] = field(default_factory=list)
    column: dict[int, int] = field(default_factory=dict)
    cursor: dict[int, int] = field(default_factory=dict)
    slots: dict[tuple[int, int], Any] = field(default_factory=dict)
    evicted: list[int] = field(default_factory=list)

    def touch(self, identity: int) -> None:
        self.order.remove(identity)
        self.order.append(identity)

    def add(self, identity: int, feature: Any) -> bool:
        """Returns whether the column joins R."""
        if identity in self.column:
            column = self.column[identity]
            self.touch(identity)
            self.slots[self.cursor[column], column] = feature
            self.cursor[column] = 1 - self.cursor[column]
            return True
        if len(self.order) < self.size:
            column = len(self.order)
        else:
            leaving = self.order.pop(0)
            self.evicted.append(leaving)
            column = self.column.pop(leaving)
        self.column[identity] = column
        self.order.append(identity)
        self.slots[0, column] = feature
        self.cursor[column] = 1
        return False

    def batch(
        self, identities: list[int], features: Sequence[Any], *, touch_first: bool
    ) -> set[int]:
        """Returns R, the columns whose second slot is used."""
        if touch_first:
            for identity in identities:
                if identity in self.column:
                    self.touch(identity)
        renewed = set()
        for identity, feature in zip(identities, features, strict=True):
            if self.add(identity, feature):
                renewed.add(self.column[identity])
        return renewed
