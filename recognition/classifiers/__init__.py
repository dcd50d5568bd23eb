"""Classifiers: one file each; each exports `build(**args) -> nn.Module` mapping (backbone, images, labels) to a loss."""
