"""From a FaceSet to batches: decoded by threads into one uint8 array a batch, ahead of the
consumer, resumable to the image.

Threads, not processes: the decoders and pread let go of the GIL, nothing is pickled or copied
between processes, and scripts/bench/loader.py measures it faster. The Python between two decodes
costs a few µs an image.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from data.decode import decode_into
from data.order import share, shuffled
from data.types import Batch, FaceSet

log = logging.getLogger(__name__)
SKIPS_ALLOWED = 100  # then at most one image in a hundred, or the run stops: such a set is broken
Order = Callable[[int], np.ndarray]


class UnreadableImages(ValueError):
    """So many images can't be read or decoded that the set is broken; the message names the last
    one."""


class Loader:
    """Iterating gives the rest of the current epoch, then moves to the next: one `for batch in
    loader` an epoch.

    faces: any FaceSet. batch_size: images a rank and step. size: side of the decoded square. order:
    epoch -> indices of the whole epoch for all ranks together (default: shuffled by seed and epoch;
    see data/order.py). threads: 0 decodes in the caller's thread. prefetch: batches decoded ahead.
    drop_last=False hands out a smaller last batch (one rank only). device: a CUDA device has
    batches copied there from pinned memory while the one before is in use.

    wait_seconds: time the consumer waited for data. skipped: images that could not be read or
    decoded; each is logged, and another image of its batch stands in. Batches depend on (seed,
    epoch, step) only, never on threads.
    """

    def __init__(
        self,
        faces: FaceSet,
        *,
        batch_size: int,
        size: int,
        seed: int,
        threads: int,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        order: Order | None = None,
        length: int | None = None,
        group: int = 1,
        prefetch: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} ranks: expected 0…{world - 1}")
        if batch_size < 1 or size < 1 or threads < 0 or prefetch < 1:
            raise ValueError(
                f"{batch_size=} {size=} {threads=} {prefetch=}: all but threads must be 1 or more"
            )
        if (order is None) != (length is None):
            raise ValueError("order and length (images in one epoch of that order) come together")
        if batch_size % group:
            raise ValueError(
                f"batch_size {batch_size} does not divide into the groups of {group} images of its order"
            )
        if world > 1 and not drop_last:
            raise ValueError(
                "drop_last=False works on one rank only: the last batch may not divide among ranks"
            )
        self.faces, self.size, self.threads, self.seed = faces, size, threads, seed
        self.batch_size, self.rank, self.world, self.drop_last = batch_size, rank, world, drop_last
        self.prefetch, self.device = prefetch, torch.device(device)
        self.order = order or (lambda epoch: shuffled(len(faces), seed=seed, epoch=epoch))
        self.epoch = 0
        self.consumed = 0  # images of this epoch handed out, all ranks together
        self.length = len(faces) if length is None else length
        self.group = group
        self.wait_seconds = 0.0
        self.skipped = 0
        self.seen = 0
        self._stream: torch.cuda.Stream | None = None
        if drop_last and self.steps_per_epoch == 0:
            ranks = f" ({batch_size} on each of {world} ranks)" if world > 1 else ""
            raise ValueError(
                f"a batch of {self.global_batch} images{ranks} is larger than an epoch, which has {self.length}; lower"
                " the batch size"
            )

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.length, self.global_batch)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def dropped(self) -> int:
        """Images left out at the end of each epoch, other ones each time."""
        return self.length % self.global_batch if self.drop_last else 0

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, step) of the next batch. After a resume with another batch size the step is
        rounded down."""
        return self.epoch, self.consumed // self.global_batch

    @position.setter
    def position(self, position: tuple[int, int]) -> None:
        self.epoch, self.consumed = position[0], position[1] * self.global_batch

    def state_dict(self) -> dict[str, int]:
        """Position of the next batch in images, so that it holds for any number of ranks, threads
        and batch size."""
        return {
            "epoch": self.epoch,
            "consumed": self.consumed,
            "seed": self.seed,
            "length": self.length,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        for key, found in (("seed", self.seed), ("length", self.length)):
            if state[key] != found:
                raise ValueError(
                    f"loader state has {key} {state[key]}, this run {found}: not the same order of images"
                )
        if state["consumed"] % self.group:
            raise ValueError(
                f"loader state lies within a group of {self.group} images; batches were made up otherwise"
            )
        self.epoch, self.consumed = int(state["epoch"]), int(state["consumed"])

    def __iter__(self) -> Iterator[Batch]:
        order = self.order(self.epoch)
        stop = (
            self.length - (self.length - self.consumed) % self.global_batch
            if self.drop_last
            else self.length
        )
        starts = range(self.consumed, stop, self.global_batch)
        decoder = _Decoder(self.faces, self.size, self.threads, pinned=self.device.type == "cuda")
        ahead: deque[_Pending] = deque()
        queued = 0
        try:
            for step in range(len(starts)):
                while queued < len(starts) and len(ahead) < self.prefetch:
                    wanted = order[starts[queued] : min(starts[queued] + self.global_batch, stop)]
                    ahead.append(decoder.begin(share(wanted, rank=self.rank, world=self.world)))
                    queued += 1
                began = time.perf_counter()
                batch = self._finish(ahead.popleft())
                self.wait_seconds += time.perf_counter() - began
                self.consumed = min(starts[step] + self.global_batch, stop)
                yield batch
            self.epoch, self.consumed = self.epoch + 1, 0
        finally:
            decoder.close()

    def _finish(self, pending: _Pending) -> Batch:
        bad = [failure for future in pending.futures for failure in future.result()]
        labels = self.faces.labels[pending.indices].astype(np.int64)
        self.seen += len(labels)
        if bad:
            self._replace(pending, labels, bad)
        images = pending.buffer.permute(0, 3, 1, 2)
        if self.device.type == "cuda":
            pinned = torch.from_numpy(labels).pin_memory()
            return _to_cuda(images, pinned, self.device, self._copies())
        return Batch(images.to(self.device), torch.from_numpy(labels).to(self.device))

    def _copies(self) -> torch.cuda.Stream:
        self._stream = self._stream or torch.cuda.Stream(self.device)
        return self._stream

    def _replace(
        self, pending: _Pending, labels: np.ndarray, bad: list[tuple[int, Exception]]
    ) -> None:
        """Puts the next good image of the batch, with its label, into the place of each bad one."""
        rows = {row for row, _ in bad}
        for row, error in bad:
            log.warning("skipped %s: %s", self.faces.describe(int(pending.indices[row])), error)
            others = ((row + step) % len(labels) for step in range(1, len(labels)))
            stand_in = next((other for other in others if other not in rows), None)
            if stand_in is None:
                raise UnreadableImages(
                    f"no image of a whole batch could be read; the last: {error}"
                ) from error
            pending.buffer[row] = pending.buffer[stand_in]
            labels[row] = labels[stand_in]
        self.skipped += len(bad)
        if self.skipped > SKIPS_ALLOWED + self.seen // 100:
            raise UnreadableImages(
                f"{self.skipped} of {self.seen} images could not be read; the last: {bad[-1][1]}"
            )


@dataclass(frozen=True)
class _Pending:
    """A batch being decoded: indices (B,), buffer uint8 (B,H,W,3), futures of [(row, error)] for
    its unreadable images.
    """

    indices: np.ndarray
    buffer: torch.Tensor
    futures: list[Future[list[tuple[int, Exception]]]]


class _Decoder:
    """Threads that fill buffers. Errors other than a bad image reach the consumer through the
    futures."""

    def __init__(self, faces: FaceSet, size: int, threads: int, *, pinned: bool) -> None:
        self.faces, self.size, self.threads, self.pinned = faces, size, threads, pinned
        self.pool = ThreadPoolExecutor(threads, "decode") if threads else None
        self.spare: list[np.ndarray] = []
        # our threads are the parallelism; OpenCV's own would only queue behind them
        cv2.setNumThreads(1)

    def begin(self, indices: np.ndarray) -> _Pending:
        buffer = self._buffer((len(indices), self.size, self.size, 3))
        rows = buffer.numpy()
        chunk = len(indices) if self.pool is None else -(-len(indices) // (2 * self.threads))
        futures = []
        for start in range(0, len(indices), chunk):
            part = slice(start, start + chunk)
            if self.pool is None:
                future: Future[list[tuple[int, Exception]]] = Future()
                future.set_result(self._fill(indices[part], rows[part], start))
            else:
                future = self.pool.submit(self._fill, indices[part], rows[part], start)
            futures.append(future)
        return _Pending(indices, buffer, futures)

    def _buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory for a batch: that of a former one of which no tensor is left, since new pages cost
        5 %."""
        if self.pinned:  # torch keeps pinned memory for reuse itself
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        memory = (
            self.spare.pop()
            if self.spare and self.spare[-1].shape == shape
            else np.empty(shape, np.uint8)
        )
        lent = memory[:]
        weakref.finalize(lent, self.spare.append, memory).atexit = False
        return torch.from_numpy(lent)

    def _fill(
        self, indices: np.ndarray, rows: np.ndarray, start: int
    ) -> list[tuple[int, Exception]]:
        bad: list[tuple[int, Exception]] = []
        for row, index in enumerate(indices.tolist()):
            try:
                decode_into(self.faces.read(index), rows[row])
            except ValueError as error:
                bad.append((start + row, error))
        return bad

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


def _to_cuda(
    images: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
    stream: torch.cuda.Stream,
) -> Batch:
    """Copies from pinned memory on a stream of its own, so that the copy overlaps the step that is
    still computing."""
    current = torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
    current.wait_stream(stream)
    images.record_stream(current)
    labels.record_stream(current)
    return Batch(images=images, labels=labels)
