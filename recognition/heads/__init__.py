"""Margin heads: one file per loss; each exports `build(…) -> MarginHead`."""
