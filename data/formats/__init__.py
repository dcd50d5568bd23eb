"""Data formats: one file each; each exports `detect(path)` and `open_set(path)`."""
