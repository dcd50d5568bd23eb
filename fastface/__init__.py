"""The schedulers of the FastFace paper (arXiv 2404.11118), usable in any PyTorch loop."""

from fastface.schedulers import FastFaceLR, MovingHaarLR

__all__ = ["FastFaceLR", "MovingHaarLR"]
