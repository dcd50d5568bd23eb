"""Images to embeddings, batch by batch: the decoded images of a set are never all in memory.

Several ranks divide the batches. In each round, rank r of K embeds the r-th of the next K batches,
and every rank receives the embeddings of all. Each image is in the same batch as with one rank, so
the embeddings are equal to the last bit, and each rank can compute all figures.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from data.images import Images
from data.landmarks import Landmarks, check_all, mirrored, needed_landmarks
from data.read_image import BadImage
from data.to_device import to_device
from eval.batches import Crop, Decoded, Indices, decoded_batches
from eval.stored import Stored

# Images in a batch. The last bits of an embedding depend on it, so it is the same for all ranks.
BATCH = 64
CUDA_BATCH = 256

Model = Callable[..., torch.Tensor]
"""A model in eval mode that normalizes its input: uint8 (B,3,S,S) RGB to (B,D) on any device.

It gets the images on its attribute `device` if it has one, otherwise on the CPU. A model whose
attribute `needs_landmarks` is true gets their landmarks, too, float32 (B,5,2) (data/landmarks.py).
"""
FindLandmarks = Callable[[], Landmarks]
"""Gives the landmarks in the crops of all images, (N,5,2)."""
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""How progress is shown: the number of images -> a context that gives `advance(images)`."""


class RankGroup(Protocol):
    """The ranks that divide a set, such as `recognition.distributed.Ranks`."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    @property
    def world(self) -> int:
        """The number of ranks."""

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tensors (n, ...) of equal shape on every rank -> (world·n, ...) in rank order."""


@dataclass(frozen=True)
class OneRank:
    """A RankGroup of one process."""

    rank: int = 0
    world: int = 1

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor


def not_shown(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A Progress that shows nothing."""
    return nullcontext(lambda images: None)


@dataclass(frozen=True)
class ModelRun:
    """A model, the ranks that divide its images, and how their progress is shown.

    Each rank calls the same functions with the same sets. The ranks gather on the model's `device`.
    """

    model: Model
    ranks: RankGroup = OneRank()
    progress: Progress = not_shown

    @property
    def needs_landmarks(self) -> bool:
        """Whether the model gets landmarks."""
        return bool(getattr(self.model, "needs_landmarks", False))

    @property
    def device(self) -> torch.device:
        """Where the model gets its images."""
        return torch.device(getattr(self.model, "device", "cpu"))


Embed = Model | ModelRun | Stored
"""What a benchmark embeds images with; stored embeddings take the place of a model."""


def mirror_setting(embed: Embed, mirror: bool) -> object:
    """The setting to report; for stored embeddings it is not known."""
    return "as stored" if isinstance(embed, Stored) else mirror


def embed_faces(
    embed: Embed,
    images: Images,
    size: int,
    *,
    indices: Indices | None = None,
    mirror: bool = True,
    crop: Crop | None = None,
    landmarks: FindLandmarks | None = None,
) -> np.ndarray:
    """Embeddings float32 (N,D), not normalized.

    With `mirror`, each is the sum of the embeddings of the image and of its mirror image.
    landmarks: those in the crops, for a model that needs some; without it, those that are stored
    with the images. ValueError if such a model finds none.
    """
    indices = range(len(images)) if indices is None else indices
    if isinstance(embed, Stored):
        return embed.lookup(images, indices)
    blocks = _blocks(embed, images, size, indices, 1 + mirror, crop, landmarks)
    return _joined(len(indices), (np.add(*views) if mirror else views[0] for views in blocks))


def embed_views(
    embed: Embed,
    images: Images,
    size: int,
    *,
    indices: Indices | None = None,
    mirror: bool = True,
    crop: Crop | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings float32 (N,D) of the images and, with `mirror`, of their mirror images.

    They are as the model gives them, not normalized. Stored embeddings are returned as they are,
    whatever `mirror` says. An image that cannot be decoded or whose embedding is not finite raises
    a ValueError that names it, on every rank, because skipping it would change the figures.
    """
    indices = range(len(images)) if indices is None else indices
    if isinstance(embed, Stored):
        return embed.lookup(images, indices), None
    views = _joined(len(indices), _blocks(embed, images, size, indices, 1 + mirror, crop))
    return views[0], views[1] if mirror else None


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Rows (N,D) divided by their norms; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def _joined(count: int, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Blocks (…,n,D) put together along n, float32 (…,count,D)."""
    joined, done = np.empty(0, np.float32), 0
    for block in blocks:
        if done == 0:  # D is known from the first block on.
            joined = np.empty((*block.shape[:-2], count, block.shape[-1]), np.float32)
        joined[..., done : done + block.shape[-2], :] = block
        done += block.shape[-2]
    return joined


def _blocks(
    embed: Model | ModelRun,
    images: Images,
    size: int,
    indices: Indices,
    views: int,
    crop: Crop | None,
    landmarks: FindLandmarks | None = None,
) -> Iterator[np.ndarray]:
    """Embeddings float32 (views,B,D) of each batch, in order, the same ones on every rank.

    A round is read only when the next one is queued, so a CUDA device does not wait for the CPU.
    """
    if len(indices) == 0:
        raise ValueError("no image to embed: the set is empty")
    run = embed if isinstance(embed, ModelRun) else ModelRun(embed)
    _check_count(run, len(indices))
    points = _points(run, images, crop, landmarks)
    cuda = run.device.type == "cuda"
    rows = CUDA_BATCH if cuda else BATCH
    batches = [indices[at : at + rows] for at in range(0, len(indices), rows)]
    rounds = [batches[at : at + run.ranks.world] for at in range(0, len(batches), run.ranks.world)]
    # A rank without a batch in the last round embeds the last batch again, and nobody reads it.
    mine = [now[min(run.ranks.rank, len(now) - 1)] for now in rounds]
    with (
        run.progress(len(indices)) as advance,
        closing(decoded_batches(images, mine, size, crop=crop, pinned=cuda)) as decoded,
    ):
        queued: _Round | None = None
        for now, own, batch in zip(rounds, mine, decoded, strict=True):
            inputs = [] if points is None else [torch.from_numpy(points[np.asarray(own)])]
            before, queued = queued, _queue(run, now, batch, views, len(batches[0]), *inputs)
            if before:
                yield from before.read(images)
                advance(sum(map(len, before.batches)))
        assert queued is not None
        yield from queued.read(images)
        advance(sum(map(len, queued.batches)))


@dataclass(frozen=True)
class _Round:
    """A batch of each rank, embedded or about to be.

    batches: the image numbers of each; the last round may have fewer batches than ranks.
    fetch: gives float32 (ranks, views, B+1, D). Row B is not 0 if an image of that rank failed:
    then it holds 1 + the image's row in its batch. own: this rank, and the error of its own image.
    """

    batches: list[Indices]
    fetch: Callable[[], np.ndarray]
    own: tuple[int, Exception | None]

    def read(self, images: Images) -> Iterator[np.ndarray]:
        """Embeddings (views,B,D) of each batch; ValueError on all ranks for the same image."""
        rank, error = self.own
        for number, (batch, views) in enumerate(zip(self.batches, self.fetch(), strict=False)):
            if failed := int(views[0, -1, 0]):
                where = images.describe(int(batch[failed - 1]))
                if number == rank and error:
                    raise error
                raise BadImage(f"{where}: rank {number} cannot read or decode it")
            vectors = views[:, : len(batch)]
            bad = np.flatnonzero(~np.isfinite(vectors).all((0, 2)))
            if len(bad):
                where = images.describe(int(batch[int(bad[0])]))
                raise ValueError(f"{where}: its embedding is not finite: has the model diverged?")
            yield vectors


def _points(
    run: ModelRun, images: Images, crop: Crop | None, landmarks: FindLandmarks | None
) -> Landmarks | None:
    """The landmarks of all images, if the model needs them."""
    if not run.needs_landmarks:
        return None
    if landmarks is not None:
        return check_all(landmarks(), images)
    if crop is not None:
        raise ValueError(
            "this model needs landmarks, and these faces are cut out of photos without any; "
            "--landmarks template takes those of the template"
        )
    return needed_landmarks(images)


def _queue(
    run: ModelRun,
    batches: list[Indices],
    mine: Decoded,
    views: int,
    rows: int,
    landmarks: torch.Tensor | None = None,
) -> _Round:
    """Queue the embedding of this rank's batch, padded to `rows`, and the exchange with the others.

    A rank whose image failed goes on with whatever pixels it has, so that no rank waits for it in
    vain: the others learn of the failure in the row behind the embeddings.
    """
    row, error = mine.failure or (-1, None)
    with torch.inference_mode():
        pixels = (
            mine.pixels.to(run.device, non_blocking=mine.pixels.is_pinned())
            .permute(0, 3, 1, 2)
            .contiguous()
        )
        embedded = [
            run.model(*_view(pixels, landmarks, mirror=view == 1)).float() for view in range(views)
        ]
        vectors = torch.stack(embedded)
        padded = vectors.new_zeros((views, rows + 1, vectors.shape[2]))
        padded[:, : vectors.shape[1]] = vectors
        padded[:, rows] = row + 1
        gathered = run.ranks.all_gather(padded).unflatten(0, (run.ranks.world, views))
        return _Round(batches, _fetch(gathered), (run.ranks.rank, error))


def _view(
    pixels: torch.Tensor, landmarks: torch.Tensor | None, *, mirror: bool
) -> tuple[torch.Tensor, ...]:
    """The input of a model: images (B,3,S,S), or their mirror images, with landmarks if given."""
    shown = pixels.flip(3) if mirror else pixels
    if landmarks is None:
        return (shown,)
    return shown, to_device(mirrored(landmarks) if mirror else landmarks, pixels.device)


def _fetch(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """A function that gives the values of `tensor`.

    A copy from a CUDA device is queued into pinned memory, and only the function waits for it.
    """
    if tensor.device.type != "cuda":
        values: np.ndarray = tensor.cpu().numpy()
        return lambda: values
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> np.ndarray:
        copied.synchronize()
        found: np.ndarray = pinned.numpy()
        return found

    return wait


def _check_count(run: ModelRun, count: int) -> None:
    """Ranks that see different sets would wait for each other in vain."""
    if run.ranks.world > 1:
        own = torch.tensor([count], device=run.device)
        counts = run.ranks.all_gather(own).tolist()
        if len(set(counts)) > 1:
            raise ValueError(
                f"the ranks find {', '.join(map(str, counts))} images in this set; "
                "every machine needs the same files"
            )
