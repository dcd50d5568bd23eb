"""Margin heads: one file a loss; each exports `build(**args)`."""
