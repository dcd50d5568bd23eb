"""Experiments whose figures are in docs/."""
