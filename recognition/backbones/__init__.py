"""Backbones: one file a family; each exports `build(**args) -> nn.Module` mapping (B,3,H,W) to (B,D)."""
