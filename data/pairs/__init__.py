"""Pairs of face images for verification: from lists, folders and .bin files, or drawn."""
