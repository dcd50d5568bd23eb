"""F²C's dynamic class pool (arXiv 2105.10375, section 3.3): a few columns that the identities seen
last share.

All of it is tensors on the training device, and a batch is placed by vectorized operations without
waiting for the device. `plan` says what a batch does to the pool and changes nothing; `commit` does
it. A rollback is a plan that is not committed, and features that a backward pass still needs are
never overwritten by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from recognition.distributed import Ranks

_LATEST = 2**62  # no stamp is so large
_BLOCK = 1 << 20  # entries in a checksum at a time: three int64 copies of them exist
_GROUP = (
    16  # columns, a power of 2: of these the oldest is found before the oldest of all are sorted
)


@dataclass(frozen=True)
class Plan:
    """What the G gallery samples of a batch do to the pool.

    Samples of one identity have equal entries, but in last, rows and writers.

    labels (G,). columns (G,): where each identity is afterwards. last (G,): the sample is its
    identity's last one. present (G,): the identity was in the pool before. cursors, stamps (G,):
    the column's next slot, time of last use. rows (G,): slot · size + column of a feature that
    changes. writers (G,): the sample that it is taken from. others (G,): the sample whose feature
    the slot at the cursor gets (the last sample writes the one beside it), or ~r (negative) where
    it keeps its own, row r; the last sample itself where the column is new and slot 1 unused.
    """

    labels: torch.Tensor
    columns: torch.Tensor
    last: torch.Tensor
    present: torch.Tensor
    cursors: torch.Tensor
    stamps: torch.Tensor
    rows: torch.Tensor
    writers: torch.Tensor
    others: torch.Tensor


class ClassPool(nn.Module):
    """`size` (S) columns of two feature slots each, for identities 0…classes-1 (C of them). The
    state is in buffers:

    features float32 (2, S, D); identities int32 (S,): who owns a column, -1 nobody; columns int32
    (C,): where an identity is, -1 nowhere; stamps int64 (S,): time of last use, unique, negative
    where the column is empty; cursors int8 (S,): slot that is written next; clock int64 (): gallery
    samples committed so far.
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
        """What labels (G,) do, in this order; they hold at most `size` different identities, or the
        plan is wrong.

        Identities that are present are touched first, so none of them is evicted; then, sample by
        sample as published, an absent identity takes the empty or least recently used column,
        writes slot 0 and sets the cursor to 1, and a present one writes at its column's cursor and
        flips it.
        """
        index = torch.arange(len(labels), device=labels.device)
        in_order, order = torch.sort(labels, stable=True)
        begin, end = (
            torch.searchsorted(in_order, labels),
            torch.searchsorted(in_order, labels, right=True),
        )
        first, last, times = order[begin], order[end - 1], end - begin

        before = self.columns[labels].long()
        present = before >= 0
        oldest = self._oldest(len(labels), touched=torch.where(present, before, self.size))
        turn = torch.cumsum((first == index) > present, 0) - 1  # -1 and what it picks: not used
        columns = torch.where(present, before, oldest[turn[first]])

        cursor = self.cursors[columns] * present
        other = (
            cursor + times
        ) & 1  # the slot that comes next: the last sample writes the one beside it
        stays = ~torch.add(columns, other, alpha=self.size)
        others = torch.where(times > 1, order[end - 2], torch.where(present, stays, last))
        is_last = last == index
        return Plan(
            labels=labels,
            columns=columns,
            last=is_last,
            present=present,
            cursors=other,
            stamps=self.clock + last,
            rows=torch.add(columns, torch.where(is_last, 1 - other, other), alpha=self.size),
            writers=torch.where(is_last, index, others),
            others=others,
        )

    def _oldest(self, count: int, *, touched: torch.Tensor) -> torch.Tensor:
        """The columns used longest ago, oldest first, `count` of them or all. Those `touched`
        (`size` for none) last.

        The oldest `count` are in the `count` groups whose oldest is oldest, so only those are
        sorted.
        """
        stamps = torch.cat(
            [self.stamps, self.stamps.new_full((-self.size % _GROUP or _GROUP,), _LATEST)]
        )
        stamps.index_fill_(0, touched, _LATEST)
        eldest = stamps.view(_GROUP, -1)
        while len(eldest) > 1:  # amin of the rows takes 8 times as long on a CPU
            eldest = torch.minimum(*eldest.chunk(2))
        groups = eldest[0].topk(min(count, eldest.shape[1]), largest=False, sorted=False).indices
        members = (
            torch.arange(0, len(stamps), eldest.shape[1], device=stamps.device)[:, None] + groups
        ).flatten()
        return members[stamps[members].topk(min(count, self.size), largest=False).indices]

    def other_features(self, plan: Plan, features: torch.Tensor) -> torch.Tensor:
        """What the slot at the new cursor holds afterwards (G,D), given features (G,D); the pool
        stays as it is.

        In a new column with one sample, whose slot 1 is unused (it is not in F²C's set R), that
        sample's feature again.
        """
        given = features.index_select(0, plan.others.clamp_min(0))
        # what does not stay need not be fetched: rows far apart are the cost
        rows = (~plan.others).clamp_min_(0)
        kept = self.features.flatten(0, 1).index_select(0, rows)
        # by 0 or 1, where lerp is exact
        return given.lerp_(kept, (plan.others < 0)[:, None].to(kept.dtype))

    def untouched(self, plan: Plan) -> torch.Tensor:
        """(S,) bool: columns that hold an identity and that the plan leaves alone."""
        owned = self.stamps >= 0
        owned[plan.columns] = False
        return owned

    def commit(self, plan: Plan, features: torch.Tensor) -> None:
        """Make the plan true, given features (G,D). Samples that write one row write the same
        values."""
        owners = self.identities[plan.columns].long()
        leaving = torch.where(plan.present | (owners < 0), plan.labels, owners)
        self.columns[leaving] = -1
        self.columns[plan.labels] = plan.columns.to(self.columns.dtype)
        self.identities[plan.columns] = plan.labels.to(self.identities.dtype)
        self.stamps[plan.columns] = plan.stamps
        self.cursors[plan.columns] = plan.cursors.to(self.cursors.dtype)
        self.features.flatten(0, 1)[plan.rows] = features[plan.writers]
        self.clock.add_(len(plan.labels))

    def check_equal(self, ranks: Ranks) -> None:
        """RuntimeError unless every rank holds the same pool, by checksums of all its bits; waits
        for the device."""
        sums = [_checksum(buffer) for buffer in self.buffers()]
        everyone = ranks.all_gather(torch.stack(sums)[None])
        if not torch.equal(everyone, everyone[:1].expand_as(everyone)):
            raise RuntimeError(
                f"class pools differ between ranks (checksums {everyone.tolist()}): they did not see the same gallery"
                " batches; resume from an earlier checkpoint"
            )


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """int64 (): depends on every bit and on its place, wrapping at 2^64."""
    bits = tensor.reshape(-1)
    bits = bits.view(torch.int32) if bits.is_floating_point() else bits
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK].long()
        total += (
            block * torch.arange(2 * start + 1, 2 * (start + len(block)), 2, device=bits.device)
        ).sum()
    return total
