"""Data formats, one per file; each file exports `detect(path)` and `open_set(path)`."""
