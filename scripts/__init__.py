"""Scripts that measure the code, and that reproduce published tables and our own experiments."""
