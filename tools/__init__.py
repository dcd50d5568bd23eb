"""What a person runs on files."""
