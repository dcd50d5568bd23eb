"""Long tests of the code over many steps, seeds or broken files."""
