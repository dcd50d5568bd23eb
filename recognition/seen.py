"""The embeddings of a step's last forward pass, for figures that describe them in the logs."""

import math
from collections.abc import Callable

import numpy as np
import torch

MOST_COMPARED = 256  # embeddings of a batch whose cosines are computed


class Seen:
    """Notes embeddings where a step computes them, and measures them when the log line is made."""

    def __init__(self) -> None:
        self._embeddings: torch.Tensor | None = None
        self._labels: torch.Tensor | None = None

    def noting(
        self, forward: Callable[..., torch.Tensor], labels: torch.Tensor
    ) -> Callable[..., torch.Tensor]:
        """`forward`, whose embeddings (b,D) are noted; row i shows the person labels[i]."""

        def noted(images: torch.Tensor) -> torch.Tensor:
            embeddings = forward(images)
            self._embeddings, self._labels = embeddings.detach(), labels
            return embeddings

        return noted

    def measure(self) -> tuple[dict[str, float], np.ndarray]:
        """Figures of a log line, and the lengths (b,) float32 of the embeddings noted last.

        embedding_norm: their median length. cosine_of_others: mean cosine of different people,
        among the first 256. One that is not finite, or has nothing to describe, is left out. It
        waits for the device once.
        """
        if self._embeddings is None or self._labels is None:
            return {}, np.empty(0, np.float32)
        embeddings = self._embeddings.float()
        norms = torch.linalg.vector_norm(embeddings, dim=1)
        units = (embeddings / norms.clamp_min(1e-12)[:, None])[:MOST_COMPARED]
        labels = self._labels[: len(units)]
        others = labels[:, None] != labels
        cosine = (units @ units.T * others).sum() / others.sum()
        *lengths, alike = torch.cat([norms, cosine[None]]).tolist()
        self._embeddings = self._labels = None
        found = {"embedding_norm": float(np.median(lengths)), "cosine_of_others": alike}
        figures = {name: value for name, value in found.items() if math.isfinite(value)}
        return figures, np.array(lengths, np.float32)
