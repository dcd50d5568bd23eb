"""Benchmark protocols: one file each; each exports `build(**args)`."""
