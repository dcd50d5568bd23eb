"""The centres of a classifier: which rows a rank holds and how they start. Independent of the number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from recognition.distributed import Ranks

BLOCK = 1 << 14  # rows drawn from one generator: a rank draws only the blocks that it holds


def shard(classes: int, ranks: Ranks) -> range:
    """Global class numbers whose centres this rank holds: [floor(rank C / world), floor((rank + 1) C / world))."""
    if classes < 2 or classes < ranks.world:
        raise ValueError(f"{classes} classes over {ranks.world} ranks: expected at least 2 classes, and one a rank")
    return range(ranks.rank * classes // ranks.world, (ranks.rank + 1) * classes // ranks.world)


def generator(*seeds: int) -> torch.Generator:
    """A CPU generator whose draws depend on every one of the non-negative integers given."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def initial_centres(rows: range, embedding: int, *, seed: int, std: float = 0.01) -> torch.Tensor:
    """float32 (len(rows), embedding) from N(0, std²): row r is the same whoever holds it."""
    centres = torch.empty(len(rows), embedding)
    for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
        drawn = torch.empty(BLOCK, embedding).normal_(0, std, generator=generator(seed, block))
        first, last = max(rows.start, block * BLOCK), min(rows.stop, (block + 1) * BLOCK)
        centres[first - rows.start : last - rows.start] = drawn[first - block * BLOCK : last - block * BLOCK]
    return centres


def embedding_of(backbone: nn.Module) -> int:
    """D of a backbone, which every backbone carries as `embedding`."""
    embedding = getattr(backbone, "embedding", None)
    if not isinstance(embedding, int):
        raise ValueError(f"{type(backbone).__name__}.embedding is {embedding!r}: expected the number of outputs")
    return embedding


def number_type(key: str, name: str) -> torch.dtype:
    """torch.float32 or torch.bfloat16 by name; ValueError names the key."""
    check_choice(key, name, ("float32", "bfloat16"))
    return torch.float32 if name == "float32" else torch.bfloat16


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError that names the key unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{key} {value!r}: expected one of {', '.join(choices)}")
