"""Evaluation: metrics on arrays, embedding extraction, benchmark protocols, reports."""
