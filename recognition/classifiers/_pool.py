"""F²C's dynamic class pool (arXiv 2105.10375, section 3.3): columns for the latest identities.

A column holds up to two features of one identity, in slot 0 and slot 1. Its cursor says which slot
is written next. The pool is made of tensors on the training device, and vectorized operations place
a whole batch without waiting for the device.

`plan` computes what a batch does to the pool, and changes nothing. `commit` carries a plan out. A
rollback is a plan that is not committed: until then, no feature that a backward pass still needs is
overwritten.
"""

from dataclasses import dataclass

import torch
from torch import nn

from recognition.classifiers._gallery import Changes, Index, put_back_unless

_LATEST = 2**62  # larger than any stamp
# Columns per group, a power of 2. The oldest column of each group is found first, and only groups
# with an old one are sorted.
_GROUP = 16


@dataclass(frozen=True)
class Plan:
    """What a batch of G gallery samples does to the pool. Every tensor has one entry per sample.

    All samples of one identity go to one column and have equal entries, except in `last`. They
    write its two slots in turn, so the features of the last two samples remain. The cursor then
    stands at the feature of the one before the last.
    """

    labels: torch.Tensor
    """The sample's identity."""
    columns: torch.Tensor
    """The identity's column after the plan."""
    last: torch.Tensor
    """bool: this is the last sample of its identity."""
    cursors: torch.Tensor
    """The column's cursor after the plan, 0 or 1. The last sample's feature is in the other
    slot."""
    stamps: torch.Tensor
    """When the column was last used, counted in gallery samples."""
    others: torch.Tensor
    """Where the feature in the slot at the cursor comes from. Three cases:

    - two or more samples: the number of the sample before the last;
    - one sample of an identity that the pool has: ~r, a negative number. The feature stays that is
      in row r = slot · size + column of all features;
    - one sample of a new identity: the number of that sample, as the slot is empty.
    """


class ClassPool(nn.Module):
    """`size` (S) columns of two feature slots each, for the identities 0 to C - 1.

    These buffers are its state:
        features float32 (2, S, D): by slot and column.
        identities int32 (S,): the identity of a column, -1 for none.
        columns int32 (C,): the column of an identity, -1 for none.
        stamps int64 (S,): time of last use, all different, negative where the column is empty.
        cursors int8 (S,): the slot that is written next.
        clock int64 (): gallery samples committed so far.
    """

    features: torch.Tensor
    identities: torch.Tensor
    columns: torch.Tensor
    stamps: torch.Tensor
    cursors: torch.Tensor
    clock: torch.Tensor

    def __init__(self, size: int, classes: int, embedding: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.zeros(2, size, embedding))
        self.register_buffer("identities", torch.full((size,), -1, dtype=torch.int32))
        self.register_buffer("columns", torch.full((classes,), -1, dtype=torch.int32))
        # Empty columns count as the oldest, in ascending order.
        self.register_buffer("stamps", torch.arange(-size, 0))
        self.register_buffer("cursors", torch.zeros(size, dtype=torch.int8))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))

    def plan(self, labels: torch.Tensor) -> Plan:
        """What gallery samples of identities `labels` (G,) do to the pool, in this order.

        The labels may have at most `size` different values; with more, the plan is wrong.

        Identities that are present are touched first, so that none of them is evicted. Then the
        samples are placed one after another, as published. An absent identity gets an empty column,
        or the least recently used one, writes slot 0 and sets the cursor to 1. A present identity
        writes at the cursor of its column and moves the cursor to the other slot.
        """
        index = torch.arange(len(labels), device=labels.device)

        # For each sample: the first and last sample of its identity, and how many there are.
        # `order` lists the samples by identity; those of one identity are from begin up to end.
        in_order, order = torch.sort(labels, stable=True)
        begin = torch.searchsorted(in_order, labels)
        end = torch.searchsorted(in_order, labels, right=True)
        first, last, times = order[begin], order[end - 1], end - begin

        # The n-th new identity, counted by first samples, gets the n-th oldest column. `turn` is
        # n - 1. It may be -1 at identities that are present, where its choice is not used.
        before = self.columns[labels].long()
        present = before >= 0
        oldest = self._oldest(len(labels), touched=torch.where(present, before, self.size))
        turn = torch.cumsum((first == index) > present, 0) - 1
        columns = torch.where(present, before, oldest[turn[first]])

        # The samples of an identity write the slots in turn, from its cursor on, or from slot 0 if
        # it is new. `other` is the slot after the last sample's.
        cursor = self.cursors[columns] * present
        other = (cursor + times) & 1

        # What that slot holds afterwards: the three cases of Plan.others.
        stays = ~torch.add(columns, other, alpha=self.size)
        others = torch.where(times > 1, order[end - 2], torch.where(present, stays, last))

        return Plan(
            labels=labels,
            columns=columns,
            last=last == index,
            cursors=other,
            stamps=self.clock + last,
            others=others,
        )

    def _oldest(self, count: int, *, touched: torch.Tensor) -> torch.Tensor:
        """The `count` least recently used columns (or all), oldest first.

        touched: columns that come last; `size` stands for no column. The `count` oldest columns lie
        in those `count` groups whose oldest column is oldest, so only the members of these groups
        are sorted.
        """
        # The stamps, padded to whole groups: column i is in group i mod the number of groups.
        padding = self.stamps.new_full((-self.size % _GROUP or _GROUP,), _LATEST)
        stamps = torch.cat([self.stamps, padding])
        stamps.index_fill_(0, touched, _LATEST)

        # The oldest of each group, by halving: amin over the rows takes 8 times as long on a CPU.
        eldest = stamps.view(_GROUP, -1)
        while len(eldest) > 1:
            eldest = torch.minimum(*eldest.chunk(2))
        group_count = eldest.shape[1]
        groups = eldest[0].topk(min(count, group_count), largest=False, sorted=False).indices

        starts = torch.arange(0, len(stamps), group_count, device=stamps.device)
        members = (starts[:, None] + groups).flatten()
        return members[stamps[members].topk(min(count, self.size), largest=False).indices]

    def other_features(self, plan: Plan, features: torch.Tensor) -> torch.Tensor:
        """The features (G,D) at the cursors after the plan, given the samples' features (G,D).

        The pool does not change. A new column with one sample gives that sample's feature once
        more, because slot 1 is unused there (the column is not in F²C's set R).
        """
        given = features.index_select(0, plan.others.clamp_min(0))

        # Rows far apart are slow to fetch, so row 0 is fetched wherever no row stays.
        rows = (~plan.others).clamp_min_(0)
        kept = self.features.flatten(0, 1).index_select(0, rows)

        # Interpolation by 0 or 1 is exact.
        return given.lerp_(kept, (plan.others < 0)[:, None].to(kept.dtype))

    def untouched(self, plan: Plan) -> torch.Tensor:
        """(S,) bool: columns that hold an identity and that the plan leaves alone."""
        # Not by `owned[plan.columns] = False`, which copies the number to a GPU and waits for it.
        return (self.stamps >= 0).index_fill_(0, plan.columns, False)

    def commit(self, plan: Plan, features: torch.Tensor) -> Changes:
        """Carry out the plan, given the samples' features (G,D). Returns what `undo_unless` needs.

        Samples that write to one place write the same values.
        """
        # An evicted identity loses its column. An empty column had no identity to evict, so an
        # entry is cleared that the next line sets.
        owners = self.identities[plan.columns].long()
        cleared = torch.where(owners < 0, plan.labels, owners)

        # The last sample's feature goes beside the cursor, the other one to the cursor's slot.
        index = torch.arange(len(plan.labels), device=plan.labels.device)
        slots = torch.where(plan.last, 1 - plan.cursors, plan.cursors)
        writers = torch.where(plan.last, index, plan.others)

        places: list[tuple[torch.Tensor, Index]] = [
            (self.columns, (cleared,)),
            (self.columns, (plan.labels,)),
            (self.identities, (plan.columns,)),
            (self.stamps, (plan.columns,)),
            (self.cursors, (plan.columns,)),
            (self.features, (slots, plan.columns)),
        ]
        changes = [(tensor, place, tensor[place]) for tensor, place in places]

        self.columns.index_fill_(0, cleared, -1)
        self.columns[plan.labels] = plan.columns.to(self.columns.dtype)
        self.identities[plan.columns] = plan.labels.to(self.identities.dtype)
        self.stamps[plan.columns] = plan.stamps
        self.cursors[plan.columns] = plan.cursors.to(self.cursors.dtype)

        self.features[slots, plan.columns] = features[writers]
        self.clock.add_(len(plan.labels))
        return changes

    def undo_unless(self, taken: torch.Tensor, changes: Changes) -> None:
        """Take back the last commit, which returned `changes`, where `taken` (scalar) is False."""
        put_back_unless(taken, changes)
        samples = len(changes[0][2])
        self.clock.sub_(torch.where(taken, 0, samples))
