"""The ranks of a run: this process's rank, their number, and the few collectives that parts need.

A run is one process unless torchrun started it. Model code receives a `Ranks` and never sees a
process group.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from recognition.config import ConfigError

# Ranks that wait longer for another one give up. Opening a set and compiling take less.
TIMEOUT = timedelta(minutes=10)
LONGEST_TEXT = 2000  # bytes of a text that ranks tell each other


class ToldElsewhere(ConfigError):
    """Another rank met a mistake, and rank 0 tells it."""


@dataclass(frozen=True)
class Launch:
    """How torchrun started this process: rank `rank` of `world`, `local_*` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """What the environment says; a single process without WORLD_SIZE.

    Raises ConfigError for an environment that torchrun did not make.
    """
    world = _whole("WORLD_SIZE", environ.get("WORLD_SIZE", "1"))
    if world <= 1:
        return Launch()
    needed = {"RANK", "MASTER_ADDR", "MASTER_PORT"} - set(environ)
    if needed:
        raise ConfigError(
            f"the environment has WORLD_SIZE={world}, but no {', '.join(sorted(needed))}: start "
            "with torchrun, or unset WORLD_SIZE for a single process"
        )
    rank = _whole("RANK", environ["RANK"])
    return Launch(
        rank,
        world,
        _whole("LOCAL_RANK", environ.get("LOCAL_RANK", str(rank))),
        _whole("LOCAL_WORLD_SIZE", environ.get("LOCAL_WORLD_SIZE", str(world))),
    )


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"the environment has {name}={text!r}: expected a number, as of torchrun")
    return int(text)


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
def ranks_of_this_run(device: torch.device, launch: Launch | None = None) -> Iterator[Ranks]:
    """The ranks of a launch, by default that of the environment.

    They talk through nccl on GPUs and through gloo on CPUs. Raises ConfigError where they can't.
    """
    launch = launch or read_launch()
    if launch.world == 1:
        yield Ranks()
        return
    backend = {"cuda": "nccl", "cpu": "gloo"}.get(device.type)
    if backend is None or (backend == "nccl" and not dist.is_nccl_available()):
        raise ConfigError(
            f"{launch.world} processes on {device.type}: this torch can't connect them; use one "
            "process, or run.device=cpu"
        )
    try:
        dist.init_process_group(
            backend, device_id=device if backend == "nccl" else None, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"{launch.world} processes did not meet at {where} through {backend}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    yield Ranks(dist.get_rank(), launch.world)
    # After an error the process ends without this, which could wait for the other ranks.
    dist.destroy_process_group()


@contextmanager
def told_once(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """A ConfigError that any rank meets inside ends all ranks, and rank 0 tells it.

    The others raise ToldElsewhere. Every rank must come here, because the ranks exchange a text.
    """
    own: ConfigError | None = None
    try:
        yield
    except ConfigError as error:
        own = error
    errors = texts_of_all(str(own or ""), ranks, device)
    failed = [rank for rank, text in enumerate(errors) if text]
    if not failed:
        return
    if ranks.rank > 0:
        raise ToldElsewhere
    raise own or ConfigError(f"rank {failed[0]}: {errors[failed[0]]}")


def check_same(parts: Mapping[str, bytes], ranks: Ranks, device: torch.device) -> None:
    """Raise ConfigError unless every one of `parts`, by name, has the same bytes on every rank."""
    for name, content in parts.items():
        digest = hashlib.sha256(content).hexdigest()
        others = texts_of_all(digest, ranks, device)
        differing = [str(rank) for rank, other in enumerate(others) if other != others[0]]
        if differing:
            raise ConfigError(
                f"{name} of rank {', '.join(differing)} differs from that of rank 0: start all "
                "processes with the same command line, on copies of the same files"
            )


def texts_of_all(text: str, ranks: Ranks, device: torch.device) -> list[str]:
    """The text of every rank, in rank order, each cut to LONGEST_TEXT bytes. All ranks call it."""
    if ranks.world == 1:
        return [text]
    encoded = text.encode()[:LONGEST_TEXT].ljust(LONGEST_TEXT, b"\0")
    rows = ranks.all_gather(
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8).to(device)[None]
    )
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows.cpu()]


def lost_others(error: BaseException) -> str | None:
    """What an error says about the connection to another rank that ended; None for other errors.

    gloo raises a plain RuntimeError with one of these texts; nccl and the store have their classes.
    """
    texts = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out")
    if not isinstance(error, RuntimeError):
        return None
    found = [text for text in texts if text in str(error)]
    if found and "gloo" in str(error):
        return found[0]
    return str(error).splitlines()[0] if isinstance(error, dist.DistError) else None
