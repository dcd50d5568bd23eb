"""Images to embeddings, batch by batch: a whole set is never in memory decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from data.decode import DecodeError, decode

Embed = Callable[[torch.Tensor], torch.Tensor]
"""uint8 (B,3,S,S) RGB on the CPU -> (B,D) on any device; the model is in eval mode and normalises its own input."""

Crop = Callable[[int, int], np.ndarray]
"""(image number, S) -> its face, uint8 (S,S,3) RGB."""


class Images(Protocol):
    """What a FaceSet has and extraction needs: encoded images by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes: ...

    def describe(self, index: int) -> str: ...


def decoded_batches(
    images: Images,
    indices: Sequence[int] | np.ndarray,
    size: int,
    *,
    crop: Crop | None = None,
    batch_size: int = 64,
    threads: int = 2,
) -> Iterator[np.ndarray]:
    """uint8 (B,S,S,3) of the images in the order of `indices`; the next batch is decoded while one is used.

    crop: makes the pixels of an image where resizing the whole is not enough.

    An image that cannot be decoded is a ValueError that says where it lives: without it the figure would be another.
    """

    def load(index: int) -> np.ndarray:
        try:
            return crop(index, size) if crop else decode(images.read(index), size)
        except DecodeError as error:
            raise ValueError(f"{images.describe(index)}: {error}") from error

    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(indices), batch_size)
        ahead = None
        for start in starts:
            current = ahead or [pool.submit(load, int(i)) for i in indices[start : start + batch_size]]
            ahead = [pool.submit(load, int(i)) for i in indices[start + batch_size : start + 2 * batch_size]]
            try:
                batch = np.stack([future.result() for future in current])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            yield batch


def embed_views(
    embed: Embed,
    images: Images,
    size: int,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    mirror: bool = True,
    crop: Crop | None = None,
    batch_size: int = 64,
    threads: int = 2,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings float32 (N,D) of the images and, with `mirror`, of their mirror images, as the model gives them."""
    indices = range(len(images)) if indices is None else indices
    if len(indices) == 0:
        raise ValueError("no image to embed: the set is empty")
    views: list[np.ndarray] = []
    done = 0
    for batch in decoded_batches(images, indices, size, crop=crop, batch_size=batch_size, threads=threads):
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
        for view in range(1 + mirror):
            with torch.inference_mode():
                vectors = embed(pixels.flip(3) if view else pixels).float().cpu().numpy()
            if len(views) == view:
                views.append(np.empty((len(indices), vectors.shape[1]), np.float32))
            views[view][done : done + len(batch)] = vectors
            bad = np.flatnonzero(~np.isfinite(vectors).all(1))
            if len(bad):
                where = images.describe(int(indices[done + int(bad[0])]))
                raise ValueError(f"{where}: its embedding is not finite: has the model diverged?")
        done += len(batch)
    return views[0], views[1] if mirror else None


def embed_faces(
    embed: Embed,
    faces: Images,
    size: int,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    mirror: bool = True,
    crop: Crop | None = None,
    batch_size: int = 64,
    threads: int = 2,
) -> np.ndarray:
    """Embeddings float32 (N,D), not normalised: of each image or, with `mirror`, image and mirror image summed."""
    plain, mirrored = embed_views(
        embed, faces, size, indices=indices, mirror=mirror, crop=crop, batch_size=batch_size, threads=threads
    )
    return plain if mirrored is None else np.add(plain, mirrored, out=plain)
