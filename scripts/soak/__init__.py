"""Long tests: what the code must survive over many steps, seeds or broken files."""
