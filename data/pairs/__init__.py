"""Pairs of face images for verification: lists, folders, verification .bin files, and drawn ones."""
