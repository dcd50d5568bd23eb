"""Writers of face sets, one form per file."""
