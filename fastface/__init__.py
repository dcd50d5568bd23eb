"""The schedulers of the FastFace paper (arXiv 2404.11118), usable in any PyTorch loop."""
