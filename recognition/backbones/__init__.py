"""Backbones: one file per family; each exports `build(…) -> nn.Module` from (B,3,H,W) to (B,D)."""

from torch import nn


def embedding_of(backbone: nn.Module) -> int:
    """D of a backbone, which every backbone has as its attribute `embedding`."""
    embedding = getattr(backbone, "embedding", None)
    if not isinstance(embedding, int):
        raise ValueError(
            f"{type(backbone).__name__}.embedding is {embedding!r}: expected the number of outputs"
        )
    return embedding
