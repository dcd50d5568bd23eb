"""How many threads decode images."""

import os


def decode_threads() -> int:
    """The cores of this machine divided by the ranks that run on it, at least 1.

    torchrun tells the number of ranks in LOCAL_WORLD_SIZE.
    """
    return max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
