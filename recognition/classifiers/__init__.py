"""Classifiers: one file each; each exports `build(**args)`, an nn.Module (backbone, images, labels) -> scalar loss."""
