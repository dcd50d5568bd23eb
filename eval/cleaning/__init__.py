"""Cleaning of face sets: what embeddings say about labels. Pure functions of arrays."""
