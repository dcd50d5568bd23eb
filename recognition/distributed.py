"""The ranks of a run: this process's rank, their number, and the few collectives that parts need.

A run is one process unless torchrun started it. Model code receives a `Ranks` and never sees a
process group.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `world`.

    With world = 1 every collective returns its input, and no process group is needed.
    """

    rank: int = 0
    world: int = 1

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tensors (n, ...) of equal shape on every rank -> (world·n, ...) in rank order.

        The result carries no gradient.
        """
        if self.world == 1:
            return tensor
        gathered = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(gathered, tensor.detach().contiguous())
        return torch.cat(gathered)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, a new tensor of the same shape; carries no gradient."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def all_reduce_max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks, a new tensor of the same shape; carries no gradient."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of rank 0, a new tensor of the same shape; carries no gradient."""
        if self.world == 1:
            return tensor
        copy = tensor.detach().clone()
        dist.broadcast(copy, 0)
        return copy

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def _reduced(self, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total, operation)
        return total


@contextmanager
def ranks_of_this_run(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun declared in the environment; one rank without torchrun.

    They talk through nccl on GPUs and through gloo elsewhere.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
