"""From a FaceSet to batches: threads decode images into one uint8 array per batch, ahead of use.

It uses threads and not processes, because the decoders and `pread` release the GIL, nothing is
pickled or copied between processes, and scripts/bench/loader.py measures threads as faster. The
Python code between two decodes costs a few µs per image.
"""

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import ParamSpec, TypeVar

import cv2
import numpy as np
import torch

from data.landmarks import Landmarks
from data.order import EpochOrder, Indices, shuffled, slice_for_rank
from data.read_image import BadImage, ResizeNotice, read_into
from data.size_schedule import SizeSchedule
from data.steps import Steps
from data.types import Batch, FaceSet, Int64, Pixels

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
# Beyond these and one image in a hundred the set counts as broken, and the run stops.
SKIPS_ALLOWED = 100
Failures = list[tuple[int, Exception]]
Draw = Callable[[Int64, int, int], Int64]
"""(planned labels of an optimizer step on all ranks, epoch, images of the epoch before it) -> a
sample for this step, which depends on nothing else."""


class UnreadableImages(ValueError):
    """The set is broken: too many images cannot be read or decoded. The message names the last."""


class Loader:
    """Iterating gives the rest of the current epoch; the next loop gives the next epoch.

    faces: any FaceSet.
    batch_size: images per rank and step.
    size: side of the decoded square, in pixels; a schedule changes it during the run.
    threads: number of decoding threads; 0 decodes in the caller's thread.
    drop_last: False keeps a smaller last batch (one rank only).
    order: the order of images (default: shuffled by seed and epoch); see data/order.py.
    prefetch: number of batches that are decoded ahead.
    device: where batches go. A batch is copied to a CUDA device from pinned memory while the one
        before is in use.
    draw: makes the `sample` of an optimizer step's first batch, in a thread, ahead of use.
    accumulation: batches per optimizer step.
    step_images: images per optimizer step, on all ranks, for which the run was planned (default:
        those of this loader's steps); see data/steps.py.

    landmarks: float32 (N,5,2) of all images, which batches then carry; None, as it is at first, for
        none.

    Batches depend on (seed, epoch, position) only, never on threads. With drop_last, an epoch has
    whole optimizer steps only.

    Attributes for logs:
        wait_seconds: how long the consumer has waited for batches.
        skipped: number of images that could not be read or decoded. Each is logged, and another
            image of its batch takes its place, of the same person if there is one.
    """

    def __init__(
        self,
        faces: FaceSet,
        *,
        batch_size: int,
        size: int | SizeSchedule,
        seed: int,
        threads: int,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        order: EpochOrder | None = None,
        prefetch: int = 3,
        device: torch.device | str = "cpu",
        draw: Draw | None = None,
        accumulation: int = 1,
        step_images: int | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} ranks: expected 0…{world - 1}")
        sizes = size if isinstance(size, SizeSchedule) else SizeSchedule(size)
        if batch_size < 1 or sizes.full < 1 or threads < 0 or prefetch < 1:
            raise ValueError(
                f"{batch_size=} {size=} {threads=} {prefetch=}: all but threads must be 1 or more"
            )
        if world > 1 and not drop_last:
            raise ValueError(
                "drop_last=False needs a single rank: several ranks may not divide the last batch"
            )
        self.faces, self.sizes, self.threads, self.seed = faces, sizes, threads, seed
        self.batch_size, self.rank, self.world, self.drop_last = batch_size, rank, world, drop_last
        self.prefetch, self.device = prefetch, torch.device(device)
        self.draw = draw
        self.landmarks: Landmarks | None = None
        self.order = order or EpochOrder(
            lambda epoch: shuffled(len(faces), seed=seed, epoch=epoch), len(faces)
        )
        images = self.global_batch * accumulation
        planned = step_images or images
        length = self.order.length
        self.steps = Steps(images, planned, length // planned * planned if drop_last else length)
        self.epoch = 0
        self.consumed = 0  # images of this epoch that all ranks together have handed out
        self.wait_seconds = 0.0
        self.skipped = 0
        self.seen = 0
        self.notice = ResizeNotice(sizes.full)
        self._stream: torch.cuda.Stream | None = None
        for name, count in (("batch_size", batch_size), ("step_images", planned)):
            if count % self.order.group:
                raise ValueError(
                    f"{name} {count} is no multiple of {self.order.group}, "
                    "the number of images that its order keeps together"
                )
        if drop_last and max(images, planned) > length:
            of_many = f" × {world} ranks × {accumulation} batches" if images > batch_size else ""
            of_plan = " and a smaller optim.step_images" if length < planned != images else ""
            raise ValueError(
                f"optim.batch_size: {batch_size}{of_many} make a step of {max(images, planned)} "
                f"images, but an epoch has {length}; "
                f"give at most {length // (world * accumulation)}{of_plan}"
            )

    @property
    def global_batch(self) -> int:
        """Images per batch on all ranks together."""
        return self.batch_size * self.world

    @property
    def place(self) -> int:
        """Images of the run before the next batch; those that an epoch leaves out count too."""
        return self.epoch * self.steps.epoch + self.consumed

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch, after the last batch of an optimizer step.

        It is counted in images, so it holds for any number of ranks and threads and any batch size.
        """
        return {"epoch": self.epoch, "consumed": self.consumed, **self._what_orders()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at a saved position; ValueError if it belongs to another order of images."""
        for key, found in self._what_orders().items():
            if state[key] != found:
                raise ValueError(
                    f"loader state has {key} {state[key]}, this run {found}: "
                    "not the same order of images"
                )
        place = self.steps.whole(state["epoch"] * self.steps.epoch + state["consumed"])
        self.epoch, self.consumed = divmod(place, self.steps.epoch)
        if self.consumed % self.order.group:
            raise ValueError(
                f"the run stands at image {self.consumed} of an epoch, which lies within a group "
                f"of {self.order.group} images that its order keeps together: take a batch size "
                f"that divides {self.consumed}"
            )

    def _what_orders(self) -> dict[str, int]:
        """What the images of an epoch and their order depend on."""
        return {
            "seed": self.seed,
            "images": len(self.faces),
            "step_images": self.steps.planned,
            "epoch_images": self.steps.epoch,
        }

    def __iter__(self) -> Generator[Batch, None, None]:
        epoch, indices = self.epoch, self.order.indices(self.epoch)
        stop = self.steps.end(self.consumed) if self.drop_last else self.steps.epoch
        starts = range(self.consumed, stop, self.global_batch)

        step_images = self.steps.images
        coming = iter(starts)
        ahead: deque[_Pending] = deque()
        decoder = _Decoder(self.faces, self.threads, self.notice, pinned=self.device.type == "cuda")
        try:
            for start in starts:
                for later in islice(coming, self.prefetch - len(ahead)):
                    batch = indices[later : min(later + self.global_batch, stop)]
                    mine = slice_for_rank(batch, rank=self.rank, world=self.world)
                    into_step = (later - starts.start) % step_images
                    step_place = epoch * self.steps.epoch + later - into_step
                    sample = None
                    if self.draw and into_step == 0:
                        labels = self.faces.labels[indices[later : min(later + step_images, stop)]]
                        sample = decoder.submit(self._drawn, self.draw, labels, epoch, later)
                    size = self.sizes.at(step_place, self.steps)
                    ahead.append(decoder.begin(mine, size, sample))
                began = time.perf_counter()
                finished = self._finish(ahead.popleft())
                self.wait_seconds += time.perf_counter() - began
                next_start = start + self.global_batch
                ends = next_start >= stop
                self.epoch, self.consumed = (epoch + 1, 0) if ends else (epoch, next_start)
                yield finished
        finally:
            decoder.close()

    def _drawn(self, draw: Draw, labels: Int64, epoch: int, place: int) -> torch.Tensor:
        sample = torch.from_numpy(draw(labels, epoch, place))
        return sample.pin_memory() if self.device.type == "cuda" else sample

    def _finish(self, pending: "_Pending") -> Batch:
        """Waits until a batch is decoded, and puts it onto the device."""
        bad = [failure for future in pending.futures for failure in future.result()]
        indices = np.array(pending.indices, np.int64)
        labels = self.faces.labels[indices].astype(np.int64)
        self.seen += len(labels)
        if bad:
            self._replace(pending, labels, indices, bad)

        # The buffer is (B,H,W,3); seen as (B,3,H,W) it is channels_last without a copy.
        parts = [pending.buffer.permute(0, 3, 1, 2), torch.from_numpy(labels)]
        if pending.sample is not None:
            parts.append(pending.sample.result())
        points = None if self.landmarks is None else torch.from_numpy(self.landmarks[indices])
        if self.device.type == "cuda":
            parts[1] = parts[1].pin_memory()
            parts = self._to_cuda(parts)
        else:
            parts = [part.to(self.device) for part in parts]
        return Batch(*parts, indices=indices, landmarks=points)

    def _to_cuda(self, pinned: list[torch.Tensor]) -> list[torch.Tensor]:
        """Copies from pinned memory on a separate stream.

        The copy therefore overlaps the training step that is still running.
        """
        current = torch.cuda.current_stream(self.device)
        self._stream = self._stream or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in pinned]
        current.wait_stream(self._stream)

        # The allocator must not reuse this memory before the training step has read it.
        for copy in copies:
            copy.record_stream(current)
        return copies

    def _replace(self, pending: "_Pending", labels: Int64, indices: Int64, bad: Failures) -> None:
        """Puts another image of the batch, with label and index, into the place of each bad one.

        It is the next good image of the same person, else the next good image. All bad images of
        one person get the same one, so two images that were of one person still are.
        """
        planned, good = labels.copy(), np.ones(len(labels), bool)
        good[[row for row, _ in bad]] = False
        stand_ins: dict[int, int] = {}
        for row, error in bad:
            log.warning("skipped %s", error)
            label = int(planned[row])
            if label not in stand_ins:
                following = np.roll(np.arange(len(labels)), -row)
                usable = following[good[following]]
                if not len(usable):
                    raise UnreadableImages(
                        f"no image of a whole batch could be read; the last: {error}"
                    ) from error
                same = usable[planned[usable] == label]
                stand_ins[label] = int((same if len(same) else usable)[0])
            pending.buffer[row] = pending.buffer[stand_ins[label]]
            labels[row], indices[row] = labels[stand_ins[label]], indices[stand_ins[label]]
        self.skipped += len(bad)
        if self.skipped > SKIPS_ALLOWED + self.seen // 100:
            raise UnreadableImages(
                f"{self.skipped} of {self.seen} images could not be read; the last: {bad[-1][1]}"
            )


@dataclass(frozen=True)
class _Pending:
    """A batch that is being decoded.

    indices: the indices of its images, (B,).
    buffer: uint8 (B,H,W,3), which the threads fill.
    futures: each gives (row, error) of the images that could not be read.
    sample: that of the optimizer step which begins with this batch.
    """

    indices: Indices
    buffer: torch.Tensor
    futures: list[Future[Failures]]
    sample: Future[torch.Tensor] | None


class _Decoder:
    """Threads that fill buffers; an error other than a bad image reaches the consumer's thread."""

    def __init__(self, faces: FaceSet, threads: int, notice: ResizeNotice, *, pinned: bool) -> None:
        self.faces, self.threads, self.pinned = faces, threads, pinned
        self.notice = notice
        self.executor = ThreadPoolExecutor(threads, "decode") if threads else None
        self.spare: list[Pixels] = []
        # These threads are the parallelism; OpenCV's own threads would only queue behind them.
        cv2.setNumThreads(1)

    def begin(self, indices: Indices, size: int, sample: Future[torch.Tensor] | None) -> _Pending:
        """Starts to decode a batch, in two chunks per thread. size: side of its images."""
        buffer = self._buffer((len(indices), size, size, 3))
        images = buffer.numpy()
        chunk = -(-len(indices) // (2 * self.threads or 1))
        futures = [
            self.submit(self._fill, indices[at : at + chunk], images[at : at + chunk], at)
            for at in range(0, len(indices), chunk)
        ]
        return _Pending(indices, buffer, futures, sample)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """What the function returns: later from a thread, or now where there are no threads."""
        if self.executor is not None:
            return self.executor.submit(function, *args, **kwargs)
        done: Future[T] = Future()
        done.set_result(function(*args, **kwargs))
        return done

    def _buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory for a batch.

        It reuses the memory of an earlier batch of which no tensor is left: new pages cost 5 %.
        """
        if self.pinned:  # torch itself keeps pinned memory for reuse
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        if self.spare and self.spare[-1].shape == shape:
            memory = self.spare.pop()
        else:
            memory = np.empty(shape, np.uint8)
        # When the last tensor on the view is gone, the memory becomes spare again.
        view = memory[:]
        weakref.finalize(view, self.spare.append, memory).atexit = False
        return torch.from_numpy(view)

    def _fill(self, indices: Indices, images: Pixels, first_row: int) -> Failures:
        bad: Failures = []
        expected = self.notice.expected
        for row, index in enumerate(indices.tolist()):
            try:
                found = read_into(self.faces, index, images[row])
                if found != expected:
                    self.notice.say(found, self.faces, index)
            except BadImage as error:
                bad.append((first_row + row, error))
        return bad

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
