"""The decoded batches of a set, which threads fill a little ahead of their use."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from data.decode_threads import decode_threads
from data.images import Images
from data.read_image import ResizeNotice, read_into

AHEAD = 2  # batches that wait or are being decoded while the model embeds one
Crop = Callable[[int, int], np.ndarray]
"""(image number, S) -> its face, uint8 (S,S,3) RGB."""
Indices = Sequence[int] | np.ndarray
Failure = tuple[int, Exception]
"""The row of an image in its batch, and why it could not be read or decoded."""


@dataclass(frozen=True)
class Decoded:
    """One batch.

    pixels: uint8 (B,S,S,3) RGB. failure: the first image that failed, whose pixels mean nothing.
    """

    pixels: torch.Tensor
    failure: Failure | None


def decoded_batches(
    images: Images,
    batches: Sequence[Indices],
    size: int,
    *,
    crop: Crop | None = None,
    pinned: bool = False,
) -> Generator[Decoded, None, None]:
    """The images of each batch of image numbers, in order.

    crop: makes the pixels of an image; without it, the whole image is resized. pinned: decode into
    pinned memory, from which a copy to a CUDA device does not make the CPU wait.
    """
    threads, notice = decode_threads(), ResizeNotice(size)

    def fill(numbers: Indices, rows: np.ndarray, first: int) -> Failure | None:
        for row, number in enumerate(map(int, numbers)):
            try:
                if crop:
                    rows[row] = crop(number, size)
                else:
                    found = read_into(images, number, rows[row])
                    if found != notice.expected:
                        notice.say(found, images, number)
            except Exception as error:
                return first + row, error
        return None

    with ThreadPoolExecutor(threads, "decode") as pool:

        def begin(numbers: Indices) -> tuple[torch.Tensor, list[Future[Failure | None]]]:
            pixels = torch.empty(
                (len(numbers), size, size, 3), dtype=torch.uint8, pin_memory=pinned
            )
            rows, chunk = pixels.numpy(), -(-len(numbers) // (2 * threads))
            return pixels, [
                pool.submit(fill, numbers[at : at + chunk], rows[at : at + chunk], at)
                for at in range(0, len(numbers), chunk)
            ]

        coming = map(begin, batches)
        ahead = deque(islice(coming, AHEAD))
        try:
            while ahead:
                pixels, futures = ahead.popleft()
                failures = [failure for future in futures if (failure := future.result())]
                ahead.extend(islice(coming, 1))
                yield Decoded(pixels, failures[0] if failures else None)
        finally:
            pool.shutdown(cancel_futures=True)
