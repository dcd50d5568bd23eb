"""Results as values, and as files for programs and for people."""
