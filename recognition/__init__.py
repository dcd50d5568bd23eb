"""Training: backbones, margin heads, classifiers, the trainer, and the run that joins them."""
