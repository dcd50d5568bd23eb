"""F²C's dynamic class pool (arXiv 2105.10375, section 3.3): a few columns for the identities seen
last.

A column holds up to two features of one identity, in slot 0 and slot 1; its cursor says which slot
is written next. All of it is tensors on the training device, and vectorized operations place a
whole batch without waiting for the device. `plan` says what a batch does to the pool and changes
nothing; `commit` does it. A rollback is a plan that is not committed, and a plan never overwrites
features that a backward pass still needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from recognition.distributed import Ranks

_LATEST = 2**62  # no stamp is so large
_BLOCK = 1 << 20  # entries per step of a checksum: three int64 copies of them exist
# A power of 2. The oldest column of each group of so many is found first, and only groups with an
# old one are sorted.
_GROUP = 16


@dataclass(frozen=True)
class Plan:
    """What a batch of G gallery samples does to the pool. Every tensor has one entry per sample.

    All samples of one identity go to one column and have equal entries, except in `last`. They
    write its two slots in turn, so two of their features remain: the last sample's, and in the
    other slot, where the cursor then stands, that of the sample before it.
    """

    labels: torch.Tensor
    """The sample's identity."""
    columns: torch.Tensor
    """The column in which the identity is afterwards."""
    last: torch.Tensor
    """bool: this is the last sample of its identity."""
    cursors: torch.Tensor
    """The column's cursor afterwards, 0 or 1. The last sample's feature is in the other slot."""
    stamps: torch.Tensor
    """The time at which the column is last used: a count of gallery samples."""
    others: torch.Tensor
    """Whose feature is in the slot at the cursor afterwards. If the identity has two samples or
    more: the number of the one before the last. If it has one and was in the pool before: ~r, a
    negative number, for the feature that is there already, in row r = slot · size + column of all
    features. If it has one and is new: the number of that sample, as nothing is in that slot."""


class ClassPool(nn.Module):
    """`size` (S) columns of two feature slots each, for identities 0…classes-1 (C of them). The
    state is in buffers.

    features float32 (2, S, D): slot, column. identities int32 (S,): who has the column, -1 for
    nobody. columns int32 (C,): where an identity is, -1 for nowhere. stamps int64 (S,): time of
    last use, all different, negative where the column is empty. cursors int8 (S,): the slot that is
    written next. clock int64 (): gallery samples committed so far.
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
        # empty columns are the oldest, the first one first
        self.register_buffer("stamps", torch.arange(-size, 0))
        self.register_buffer("cursors", torch.zeros(size, dtype=torch.int8))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))

    def plan(self, labels: torch.Tensor) -> Plan:
        """What gallery samples of identities `labels` (G,) do, in this order. At most `size` of
        them are different, or the plan is wrong.

        Identities that are present are touched first, so that none of them is evicted. Then comes
        sample after sample, as published. An absent identity gets the empty or least recently used
        column, writes slot 0 and sets the cursor to 1. A present one writes at the cursor of its
        column and moves the cursor to the other slot.
        """
        index = torch.arange(len(labels), device=labels.device)

        # For each sample: the first, last and number of samples of its identity. `order` lists the
        # samples by identity, so those of one lie between begin and end.
        in_order, order = torch.sort(labels, stable=True)
        begin = torch.searchsorted(in_order, labels)
        end = torch.searchsorted(in_order, labels, right=True)
        first, last, times = order[begin], order[end - 1], end - begin

        # The n-th new identity, counted by first samples, gets the n-th oldest column. `turn` is
        # the count less 1; at present identities it may be -1, and what it picks is not used.
        before = self.columns[labels].long()
        present = before >= 0
        oldest = self._oldest(len(labels), touched=torch.where(present, before, self.size))
        turn = torch.cumsum((first == index) > present, 0) - 1
        columns = torch.where(present, before, oldest[turn[first]])

        # The samples of an identity write slots in turn, from its cursor on, a new one from slot 0.
        # The slot that would come next is the one beside the last sample's.
        cursor = self.cursors[columns] * present
        other = (cursor + times) & 1

        # what that slot has afterwards, by the three cases of Plan.others
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
        """The `count` columns (or all) that were used longest ago, oldest first. The columns
        `touched` (`size` stands for none) come last.

        The `count` oldest columns lie in those `count` groups whose oldest column is oldest, so
        only the members of these groups are sorted.
        """
        # the stamps, filled up to whole groups; a column at place i is in group i mod their number
        padding = self.stamps.new_full((-self.size % _GROUP or _GROUP,), _LATEST)
        stamps = torch.cat([self.stamps, padding])
        stamps.index_fill_(0, touched, _LATEST)

        # each group's oldest, by halving; amin over the rows takes 8 times as long on a CPU
        eldest = stamps.view(_GROUP, -1)
        while len(eldest) > 1:
            eldest = torch.minimum(*eldest.chunk(2))
        group_count = eldest.shape[1]
        groups = eldest[0].topk(min(count, group_count), largest=False, sorted=False).indices

        starts = torch.arange(0, len(stamps), group_count, device=stamps.device)
        members = (starts[:, None] + groups).flatten()
        return members[stamps[members].topk(min(count, self.size), largest=False).indices]

    def other_features(self, plan: Plan, features: torch.Tensor) -> torch.Tensor:
        """What the slot at the new cursor has after the plan (G,D), given the samples' features
        (G,D). The pool stays as it is.

        In a new column with one sample this is that sample's feature once more: slot 1 is unused
        there (the column is not in F²C's set R).
        """
        given = features.index_select(0, plan.others.clamp_min(0))

        # Rows far apart are slow to fetch: where no row stays, always fetch row 0.
        rows = (~plan.others).clamp_min_(0)
        kept = self.features.flatten(0, 1).index_select(0, rows)

        # Interpolation by 0 or 1 is exact.
        return given.lerp_(kept, (plan.others < 0)[:, None].to(kept.dtype))

    def untouched(self, plan: Plan) -> torch.Tensor:
        """(S,) bool: columns that hold an identity and that the plan leaves alone."""
        owned = self.stamps >= 0
        owned[plan.columns] = False
        return owned

    def commit(self, plan: Plan, features: torch.Tensor) -> None:
        """Carry out the plan, given the samples' features (G,D). Samples that write to one place
        write the same values."""
        # An evicted identity is nowhere. An empty column has no owner: clear an entry set next.
        owners = self.identities[plan.columns].long()
        self.columns[torch.where(owners < 0, plan.labels, owners)] = -1

        self.columns[plan.labels] = plan.columns.to(self.columns.dtype)
        self.identities[plan.columns] = plan.labels.to(self.identities.dtype)
        self.stamps[plan.columns] = plan.stamps
        self.cursors[plan.columns] = plan.cursors.to(self.cursors.dtype)

        # the last sample's feature beside the cursor, the other one at the cursor
        index = torch.arange(len(plan.labels), device=plan.labels.device)
        slots = torch.where(plan.last, 1 - plan.cursors, plan.cursors)
        writers = torch.where(plan.last, index, plan.others)
        self.features[slots, plan.columns] = features[writers]
        self.clock.add_(len(plan.labels))

    def check_equal(self, ranks: Ranks) -> None:
        """RuntimeError unless every rank holds the same pool, judged by checksums of all its bits.
        Waits for the device."""
        sums = [_checksum(buffer) for buffer in self.buffers()]
        everyone = ranks.all_gather(torch.stack(sums)[None])
        if not torch.equal(everyone, everyone[:1].expand_as(everyone)):
            raise RuntimeError(
                f"class pools differ between ranks (checksums {everyone.tolist()}): the ranks did "
                "not see the same gallery batches; resume from an earlier checkpoint"
            )


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """int64 (): depends on every bit and on its place, wrapping at 2^64."""
    bits = tensor.reshape(-1)
    bits = bits.view(torch.int32) if bits.is_floating_point() else bits
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK].long()

        # entry i counts 2i + 1 times: an odd factor loses no bit
        end = start + len(block)
        factors = torch.arange(2 * start + 1, 2 * end, 2, device=bits.device)
        total += (block * factors).sum()
    return total
