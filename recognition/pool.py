"""F²C's dynamic class pool (arXiv 2105.10375, section 3.3): a few columns that the identities seen last share.

All of it is tensors on the training device, and a batch is placed by vectorised operations without waiting for the
device. `plan` says what a batch does to the pool and changes nothing; `commit` does it. A rollback is a plan that is
not committed, and features that a backward pass still needs are never overwritten by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from recognition.distributed import Ranks

_NEVER = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class Plan:
    """What the G gallery samples of a batch do to the pool. Entries of samples of one identity are equal.

    labels (G,). columns (G,): where each identity is afterwards. first (G,): the sample is its identity's first.
    present (G,): the identity was in the pool before. sources (2, G): the sample whose feature slot 0 and slot 1 of the
    column hold afterwards, -1 where the slot keeps its own. renewed (G,): the column belongs to F²C's set R, whose
    slot 1 is used. cursors, stamps (G,): the column's next slot and time of last use.
    """

    labels: torch.Tensor
    columns: torch.Tensor
    first: torch.Tensor
    present: torch.Tensor
    sources: torch.Tensor
    renewed: torch.Tensor
    cursors: torch.Tensor
    stamps: torch.Tensor


class ClassPool(nn.Module):
    """`size` (S) columns of two feature slots each, for identities 0…classes-1 (C of them). The state is in buffers:

    features float32 (2, S, D); identities int32 (S,): who owns a column, -1 nobody; columns int32 (C,): where an
    identity is, -1 nowhere; stamps int64 (S,): time of last use, unique, negative where the column is empty;
    cursors int8 (S,): slot that is written next; clock int64 (): gallery samples committed so far.
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
        self.register_buffer("stamps", torch.arange(-size, 0))  # empty columns are the oldest, the first one first
        self.register_buffer("cursors", torch.zeros(size, dtype=torch.int8))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))

    def plan(self, labels: torch.Tensor) -> Plan:
        """What labels (G,) do, in this order; they hold at most `size` different identities, or the plan is wrong.

        Identities that are present are touched first, so none of them is evicted; then, sample by sample as published,
        an absent identity takes the empty or least recently used column, writes slot 0 and sets the cursor to 1, and a
        present one writes at its column's cursor and flips it.
        """
        index = torch.arange(len(labels), device=labels.device)
        in_order, order = torch.sort(labels, stable=True)
        begin, end = torch.searchsorted(in_order, labels), torch.searchsorted(in_order, labels, right=True)
        first, last, times = order[begin], order[end - 1], end - begin

        before = self.columns[labels].long()
        present = before >= 0
        stamps = self.clock + last
        touched = self.stamps.scatter_reduce(0, before.clamp_min(0), torch.where(present, stamps, _NEVER), "amax")
        oldest = touched.topk(min(len(labels), self.size), largest=False, sorted=True).indices
        is_first = first == index
        turn = torch.cumsum(is_first & ~present, 0) - 1
        columns = torch.where(present, before, oldest[turn[first].clamp_min(0)])

        cursor = torch.where(present, self.cursors[columns].long(), 0)
        written = (cursor + times - 1) % 2  # slot that the last sample writes; the one before it writes the other
        previous = torch.where(times > 1, order[(end - 2).clamp_min(0)], -1)
        sources = torch.stack([torch.where(written == slot, last, previous) for slot in (0, 1)])
        return Plan(
            labels=labels,
            columns=columns,
            first=is_first,
            present=present,
            sources=sources,
            renewed=present | (times > 1),
            cursors=1 - written,
            stamps=stamps,
        )

    def written(self, plan: Plan, features: torch.Tensor) -> torch.Tensor:
        """Both slots of the plan's columns afterwards (2,G,D), given features (G,D); the pool stays as it is."""
        sources = plan.sources.flatten()
        given = features.index_select(0, sources.clamp_min(0))
        rows = torch.cat([plan.columns, plan.columns + self.size])
        rows = torch.where(sources >= 0, 0, rows)  # what is replaced need not be fetched: rows far apart are the cost
        kept = self.features.flatten(0, 1).index_select(0, rows)
        taken = (sources >= 0).to(kept.dtype)[:, None]  # 0 or 1, where lerp is exact; half the time of torch.where
        return kept.lerp_(given, taken).view(2, len(plan.columns), -1)

    def untouched(self, plan: Plan) -> torch.Tensor:
        """(S,) bool: columns that hold an identity and that the plan leaves alone."""
        owned = self.stamps >= 0
        owned[plan.columns] = False
        return owned

    def commit(self, plan: Plan, written: torch.Tensor) -> None:
        """Make the plan true. written: what `written` returned. Samples of one identity write the same values."""
        owners = self.identities[plan.columns].long()
        leaving = torch.where(plan.present | (owners < 0), plan.labels, owners)
        self.columns[leaving] = -1
        self.columns[plan.labels] = plan.columns.to(self.columns.dtype)
        self.identities[plan.columns] = plan.labels.to(self.identities.dtype)
        self.stamps[plan.columns] = plan.stamps
        self.cursors[plan.columns] = plan.cursors.to(self.cursors.dtype)
        self.features[:, plan.columns] = written
        self.clock += len(plan.labels)

    def check_equal(self, ranks: Ranks) -> None:
        """RuntimeError unless every rank holds the same pool, by checksums of all its bits; waits for the device."""
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
    bits = (bits.view(torch.int32) if bits.is_floating_point() else bits).long()
    return (bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum()
