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


class Images(Protocol):
    """What a FaceSet has and extraction needs: encoded images by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes: ...

    def describe(self, index: int) -> str: ...


def decoded_batches(
    images: Images, indices: Sequence[int] | np.ndarray, size: int, *, batch_size: int = 64, threads: int = 2
) -> Iterator[np.ndarray]:
    """uint8 (B,S,S,3) of the images in the order of `indices`; the next batch is decoded while one is used.

    An image that cannot be decoded is a ValueError that says where it lives: without it the figure would be another.
    """

    def load(index: int) -> np.ndarray:
        try:
            return decode(images.read(index), size)
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
    batch_size: int = 64,
    threads: int = 2,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings float32 (N,D) of the images and, with `mirror`, of their mirror images, as the model gives them."""
    indices = range(len(images)) if indices is None else indices
    views: list[list[np.ndarray]] = [[], []]
    for batch in decoded_batches(images, indices, size, batch_size=batch_size, threads=threads):
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            views[0].append(embed(pixels).float().cpu().numpy())
            if mirror:
                views[1].append(embed(pixels.flip(3)).float().cpu().numpy())
    if not views[0]:
        raise ValueError("no image to embed: the set is empty")
    plain = np.concatenate(views[0])
    if not np.isfinite(plain).all():
        bad = int(np.flatnonzero(~np.isfinite(plain).all(1))[0])
        raise ValueError(f"{images.describe(int(indices[bad]))}: its embedding is not finite: has the model diverged?")
    return plain, np.concatenate(views[1]) if mirror else None


def embed_faces(
    embed: Embed,
    faces: Images,
    size: int,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    mirror: bool = True,
    batch_size: int = 64,
    threads: int = 2,
) -> np.ndarray:
    """Embeddings float32 (N,D), not normalised: of each image or, with `mirror`, image and mirror image summed."""
    plain, mirrored = embed_views(
        embed, faces, size, indices=indices, mirror=mirror, batch_size=batch_size, threads=threads
    )
    return plain if mirrored is None else plain + mirrored
