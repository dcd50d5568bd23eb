"""Soaks: long checks with full counts, too slow for the test suite."""
