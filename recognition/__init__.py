"""Training: backbones, margin heads, classifiers, the trainer and the experiment that joins the
parts."""
