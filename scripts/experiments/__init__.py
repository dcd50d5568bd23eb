"""Experiments whose figures are in docs, and their tables."""
