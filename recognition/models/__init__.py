"""Trained models: reading every published form, the model folder, and a model that embeds."""
