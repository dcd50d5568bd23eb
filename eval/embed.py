"""Images to embeddings, batch by batch: a whole set is never in memory decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.decode import DecodeError, decode
from data.images import Images, stem

BATCH = 64  # images
THREADS = 2  # that decode
Crop = Callable[[int, int], np.ndarray]
"""(image number, S) -> its face, uint8 (S,S,3) RGB."""


@dataclass(frozen=True)
class Stored:
    """Embeddings made elsewhere, in place of a model: (N,D) of any float type, and the row of each
    image's name.

    An image is found by the longest end of its path that is a name, its suffix aside.
    """

    embeddings: np.ndarray
    rows: dict[str, int]
    source: str

    def lookup(self, images: Images, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of these images (n,D); the array itself, uncopied, where they are all of it in
        order."""
        at = np.array([self.row(images.describe(int(i))) for i in indices])
        if len(np.unique(at)) < len(at):
            raise ValueError(
                f"{self.source}: two images have one name in it; store names with their folders"
            )
        if len(at) == len(self.embeddings) and (at == np.arange(len(at))).all():
            return self.embeddings
        return np.asarray(self.embeddings[at], np.float32)

    def row(self, path: str) -> int:
        parts = stem(path).split("/")
        for start in range(len(parts)):
            row = self.rows.get("/".join(parts[start:]))
            if row is not None:
                return row
        raise ValueError(f"{self.source}: has no embedding of {path}")


def load_stored(path: str | Path, names: str | Path) -> Stored:
    """Embeddings from .npy (mapped, never unpickled) and names from a text file, one a line up to a
    tab."""
    for file in (path, names):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file")
    try:
        embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: {error}; expected a .npy file of floats (N,D)") from None
    listed = Path(names).read_text(encoding="utf-8").splitlines()
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or len(embeddings) != len(listed):
        raise ValueError(
            f"{path} holds {embeddings.dtype} {embeddings.shape}, {names} {len(listed)} names; expected floats (N,D) "
            "and a name for each"
        )
    return Stored(
        embeddings,
        {stem(line.split("\t")[0].strip()): row for row, line in enumerate(listed)},
        str(names),
    )


Embed = Callable[[torch.Tensor], torch.Tensor] | Stored
"""uint8 (B,3,S,S) RGB on the CPU -> (B,D) on any device; the model is in eval mode and normalizes
its own input."""


def mirror_setting(embed: Embed, mirror: bool) -> object:
    """What to print: stored embeddings are with or without the mirror image as they were made."""
    return "as stored" if isinstance(embed, Stored) else mirror


def decoded_batches(
    images: Images,
    indices: Sequence[int] | np.ndarray,
    size: int,
    *,
    crop: Crop | None = None,
) -> Iterator[np.ndarray]:
    """uint8 (B,S,S,3) of the images in the order of `indices`; the next batch is decoded while one
    is used.

    crop: makes the pixels of an image where resizing the whole is not enough.

    An image that cannot be decoded is a ValueError that says where it lives: without it the figure
    would be another.
    """

    def load(index: int) -> np.ndarray:
        try:
            return crop(index, size) if crop else decode(images.read(index), size)
        except DecodeError as error:
            raise ValueError(f"{images.describe(index)}: {error}") from error

    with ThreadPoolExecutor(THREADS) as pool:
        starts = range(0, len(indices), BATCH)
        ahead = None
        for start in starts:
            current = ahead or [pool.submit(load, int(i)) for i in indices[start : start + BATCH]]
            ahead = [pool.submit(load, int(i)) for i in indices[start + BATCH : start + 2 * BATCH]]
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
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings float32 (N,D) of the images and, with `mirror`, of their mirror images, as the
    model gives them.

    Stored embeddings are handed through as they are, whatever `mirror` says.
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
) -> np.ndarray:
    """Embeddings float32 (N,D), not normalized: of each image or, with `mirror`, image and mirror
    image summed."""
    plain, mirrored = embed_views(embed, faces, size, indices=indices, mirror=mirror, crop=crop)
    return plain if mirrored is None else np.add(plain, mirrored, out=plain)
