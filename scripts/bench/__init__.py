"""Benchmarks of speed and memory, which print ratios measured within one run."""
