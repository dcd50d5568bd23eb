"""Images to embeddings, batch by batch: the decoded images of a set are never all in memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from data.decode import DecodeError, decode
from data.images import Images
from eval.stored import Stored

BATCH = 64  # images
THREADS = 2  # decode threads
Embed = Callable[[torch.Tensor], torch.Tensor] | Stored
"""A model in eval mode that normalizes its input, or stored embeddings.

A model maps uint8 (B,3,S,S) RGB on the CPU to (B,D) on any device.
"""
Crop = Callable[[int, int], np.ndarray]
"""(image number, S) -> its face, uint8 (S,S,3) RGB."""


def mirror_setting(embed: Embed, mirror: bool) -> object:
    """The setting to report; for stored embeddings it is not known."""
    return "as stored" if isinstance(embed, Stored) else mirror


def embed_faces(
    embed: Embed,
    images: Images,
    size: int,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    mirror: bool = True,
    crop: Crop | None = None,
) -> np.ndarray:
    """Embeddings float32 (N,D), not normalized.

    With `mirror`, each is the sum of the embeddings of the image and of its mirror image.
    """
    plain, mirrored = embed_views(embed, images, size, indices=indices, mirror=mirror, crop=crop)
    return plain if mirrored is None else np.add(plain, mirrored, out=plain)


def embed_views(
    embed: Embed,
    images: Images,
    size: int,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    mirror: bool = True,
    crop: Crop | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings float32 (N,D) of the images and, with `mirror`, of their mirror images.

    They are as the model gives them, not normalized. Stored embeddings are returned as they are,
    whatever `mirror` says.
    """
    indices = range(len(images)) if indices is None else indices
    if len(indices) == 0:
        raise ValueError("no image to embed: the set is empty")
    if isinstance(embed, Stored):
        return embed.lookup(images, indices), None
    views: list[np.ndarray] = []
    done = 0
    for batch in decoded_batches(images, indices, size, crop=crop):
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
        for view in range(1 + mirror):
            with torch.inference_mode():
                vectors = embed(pixels.flip(3) if view else pixels).float().cpu().numpy()
            # D is known from the first batch on.
            if len(views) == view:
                views.append(np.empty((len(indices), vectors.shape[1]), np.float32))
            views[view][done : done + len(batch)] = vectors
            bad = np.flatnonzero(~np.isfinite(vectors).all(1))
            if len(bad):
                where = images.describe(int(indices[done + int(bad[0])]))
                raise ValueError(f"{where}: its embedding is not finite: has the model diverged?")
        done += len(batch)
    return views[0], views[1] if mirror else None


def decoded_batches(
    images: Images,
    indices: Sequence[int] | np.ndarray,
    size: int,
    *,
    crop: Crop | None = None,
) -> Iterator[np.ndarray]:
    """uint8 (B,S,S,3) of the images in the order of `indices`.

    The next batch is decoded while the caller uses one. An image that cannot be decoded raises a
    ValueError that names it, because skipping it would change the figures.

    crop: makes the pixels of an image; without it, the whole image is resized.
    """

    def load(index: int) -> np.ndarray:
        try:
            return crop(index, size) if crop else decode(images.read(index), size)
        except DecodeError as error:
            raise ValueError(f"{images.describe(index)}: {error}") from error

    with ThreadPoolExecutor(THREADS) as threads:
        ahead = None
        for start in range(0, len(indices), BATCH):
            middle, end = start + BATCH, start + 2 * BATCH
            current = ahead or [threads.submit(load, int(i)) for i in indices[start:middle]]
            ahead = [threads.submit(load, int(i)) for i in indices[middle:end]]
            try:
                batch = np.stack([future.result() for future in current])
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
            yield batch
