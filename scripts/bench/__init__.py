"""Benchmarks of speed and memory. They print ratios that are measured within one run."""
