"""Seeds made of several numbers, so that nothing about randomness needs to be saved."""

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2^63) that depends on every one of the non-negative integers given."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def generator(*seeds: int) -> torch.Generator:
    """A CPU generator whose draws depend on every one of the non-negative integers given."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
