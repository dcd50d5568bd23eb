"""Copies a loss from a GPU while the CPU goes on, without waiting for the step just queued."""

import torch
from torch import Tensor


class PinnedCopy:
    """One scalar on its way from a CUDA device to pinned memory.

    `start` queues the copy and returns at once. `value` is called one step later, when the GPU has
    usually finished the copy. If it has not, `value` waits, and the GPU does not idle meanwhile:
    the whole next step is in its queue. The value never depends on timing, so all ranks and resumed
    runs make the same decisions.
    """

    def __init__(self) -> None:
        self.buffer = torch.empty((), dtype=torch.float64, pin_memory=True)
        self.copied = torch.cuda.Event()

    def start(self, loss: Tensor) -> None:
        """Queues the copy of a 0-d CUDA tensor on the current stream."""
        self.buffer.copy_(loss.detach().double(), non_blocking=True)
        self.copied.record(torch.cuda.current_stream(loss.device))

    def value(self) -> float:
        """The last scalar given to `start`."""
        self.copied.synchronize()
        return self.buffer.item()
